"""What portable forms cost: the model's latency beside what it would be with the runtime's own softmax and
LayerNorm.

`build_latency` says how the file compares with the float model; this says how much of it is the price of
equal codes everywhere.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixport.lower.operators.timing_pairs import write_pair
from mixport.records.progress import Progress, SilentProgress
from mixport.records.quantized_model import CompositeForm
from mixport.records.targets import SessionRules
from mixport.validate.run.latency import measure

_SECONDS = 0.4
"""Budget of each measurement: a figure for orientation, good to some percent on a quiet machine."""


@dataclass(frozen=True, kw_only=True)
class FormCost:
    """One kind and shape.

    Attributes:
        kind: softmax, attention (a softmax in front of a matrix product) or layer_norm.
        shape: of its input, for one image.
        count: how often it occurs.
        portable_ms: median of one, in the portable form.
        own_ms: median of the runtime's own operator.
    """

    kind: str
    shape: tuple[int, ...]
    count: int
    portable_ms: float
    own_ms: float


@dataclass(frozen=True, kw_only=True)
class PortableCost:
    """Batch 1, one thread, this machine.

    Attributes:
        model_ms: median of the model as it ships.
        ratio: of that to the model with the runtime's own operators, by the sums of the forms' medians.
        forms: one record a kind and shape.
    """

    model_ms: float
    ratio: float
    forms: tuple[FormCost, ...]


def portable_cost(
    model_ms: float,
    forms: Sequence[CompositeForm],
    *,
    session: SessionRules,
    progress: Progress | None = None,
) -> PortableCost | None:
    """Time each distinct form; None where the model has none: integer sums, tables and the like cost nothing
    more.

    Args:
        model_ms: median latency of the model as it ships.
        forms: softmaxes and normalisations of the model.
        session: policy; one thread is used whatever it says.
        progress: shows rounds.
    """
    if not forms:
        return None
    bar = progress or SilentProgress()

    def time(*files: Path) -> tuple[float, ...]:
        return tuple(
            one.median_ms
            for one in measure(files, config=session.config, seconds=_SECONDS, seed=0, progress=bar)
        )

    costs: list[FormCost] = []
    with tempfile.TemporaryDirectory(prefix="mixport-cost-") as folder:
        for form, count in Counter(CompositeForm(kind=one.kind, shape=one.shape) for one in forms).items():
            portable_ms, own_ms = time(*write_pair(form, Path(folder)))
            costs.append(
                FormCost(
                    kind=form.kind, shape=form.shape, count=count, portable_ms=portable_ms, own_ms=own_ms
                )
            )
    extra = sum(cost.count * (cost.portable_ms - cost.own_ms) for cost in costs)
    # The forms are timed alone: noise must not make the model cheaper than nothing.
    without = max(model_ms - extra, 0.05 * model_ms)
    return PortableCost(model_ms=model_ms, ratio=model_ms / without, forms=tuple(costs))
