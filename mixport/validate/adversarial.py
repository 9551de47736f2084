"""Checks of every fused unit by itself, on inputs crafted from its own integers, with tolerance 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from mixport.artifacts import Decision, Divergence
from mixport.errors import BadInputError
from mixport.progress import Progress, SilentProgress
from mixport.targets import SessionRules
from mixport.validate.cases import Case, cases_for
from mixport.validate.compare import Comparison, compare, join
from mixport.validate.cut import cut_unit, input_names
from mixport.validate.interpreter import Interpreter
from mixport.validate.session import open_session
from mixport.validate.units import FusedUnit


@dataclass(frozen=True, kw_only=True)
class SiteChecks:
    """What the checks found.

    Attributes:
        counts: {`operator: kind`: {sites, values, mismatches}}.
        first: first divergence, in graph order.
        skipped: units that could not be checked by themselves, and why.
    """

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    first: Divergence | None = None
    skipped: tuple[Decision, ...] = ()

    @property
    def mismatches(self) -> int:
        """Over all kinds."""
        return sum(count["mismatches"] for count in self.counts.values())


def check_sites(
    model: Path | str | onnx.ModelProto,
    *,
    policy: SessionRules,
    input_shape: tuple[int, ...],
    seed: int = 0,
    progress: Progress | None = None,
) -> SiteChecks:
    """Cut out every fused unit and compare the runtime with the interpreter on crafted codes.

    Args:
        model: the file.
        policy: session policy.
        input_shape: of the model's input, with any batch: sizes of pooling windows follow from it.
        seed: of every random choice.
        progress: told after every unit.
    """
    interpreter = Interpreter(model)
    shapes = interpreter.inferred_shapes(input_shape)
    found: dict[str, list[Comparison]] = {}
    skipped: list[Decision] = []
    first: Divergence | None = None
    with (progress or SilentProgress()).track("checking operators", total=len(interpreter.units), unit="operators") as advance:
        for number, unit in enumerate(interpreter.units):
            advance(1)
            if unit.uncut:
                skipped.append(Decision(where=unit.output, what="not checked by itself", why=unit.uncut))
                continue
            rng = np.random.default_rng((seed, number))
            for kind, comparison in _check(unit, interpreter, cases_for(unit, shapes=shapes, rng=rng), policy).items():
                found.setdefault(f"{unit.kind}: {kind}", []).append(comparison)
                first = first or comparison.first
    return SiteChecks(counts={kind: _count(parts) for kind, parts in sorted(found.items())}, first=first, skipped=tuple(skipped))


def _check(unit: FusedUnit, whole: Interpreter, cases: tuple[Case, ...], policy: SessionRules) -> dict[str, Comparison]:
    ranks = [cases[0].feeds[name].ndim for name in input_names(unit)]
    model = cut_unit(unit, whole.plan.graph, ranks=ranks)
    interpreter = Interpreter(model)
    session = open_session(model, policy=policy)
    found: dict[str, Comparison] = {}
    for case in cases:
        expected = interpreter.run_feeds(case.feeds).outputs[unit.output]
        if expected is None:
            raise BadInputError(f"unit {unit.output} holds a float island: {', '.join(interpreter.island_names)}")
        got = session.run(None, dict(case.feeds))[0]
        comparison = compare({unit.output: expected}, {unit.output: got}, order=[unit.output], executor="onnxruntime", inputs=case.kind)
        found[case.kind] = join(found.get(case.kind, Comparison()), comparison)
    return found


def _count(parts: list[Comparison]) -> Mapping[str, int]:
    total = join(*parts)
    return {"sites": len(parts), "values": total.values, "mismatches": total.mismatches}
