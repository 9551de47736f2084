"""Other runtimes against the interpreter: the whole model on images, the file as it ships, and every unit by
itself, in one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixport.records.runtime import Runtime, RuntimeAnswer, RuntimeJob
from mixport.records.targets import SessionRules
from mixport.records.validation_report import Divergence, Localisation, RuntimeResult
from mixport.validate.crafted.check_units import UnitCheck, compare_unit, localise_unit
from mixport.validate.interpreter.graph import Array
from mixport.validate.localise.localise import Evidence, localise
from mixport.validate.run.compare import Comparison, compare, join
from mixport.validate.run.executors import Batch, Executors
from mixport.validate.run.session import with_code_outputs


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What one runtime gave.

    Attributes:
        result: counts over images and crafted units.
        first: first divergence in graph order.
        located: where it lies, and the likely cause.
    """

    result: RuntimeResult
    first: Divergence | None
    located: Localisation | None


def compare_elsewhere(
    runtime: Runtime,
    model: Path,
    executors: Executors,
    *,
    batches: Sequence[Batch],
    units: Sequence[UnitCheck],
    policy: SessionRules,
) -> Elsewhere:
    """Run everything on one runtime and compare every value with tolerance 0.

    Args:
        runtime: gets all jobs in one call, so that an emulator or a board starts once.
        model: the file.
        executors: interpreter of the file, and its sites.
        batches: images with what the interpreter gives for them.
        units: crafted checks of single operators.
        policy: session policy.

    Raises:
        RuntimeUnavailableError: the runtime does not start or breaks off. A model that it refuses counts as
            wholly different instead.
    """
    source = executors.interpreter.plan.graph.inputs[0].name
    feeds = [{source: batch.images} for batch in batches]
    instrumented = with_code_outputs(model, executors.sites).SerializeToString()
    outputs = tuple(dict.fromkeys((*executors.sites, executors.output)))
    jobs = [
        RuntimeJob(model=instrumented, feeds=feeds, outputs=outputs),
        # Further outputs can keep the optimiser from merging nodes: the file as it ships is run as well.
        RuntimeJob(model=model.read_bytes(), feeds=feeds, outputs=(executors.output,)),
        *(
            RuntimeJob(model=unit.model, feeds=[case.feeds for case in unit.cases], outputs=(unit.output,))
            for unit in units
        ),
    ]
    info, answers = runtime.run(jobs, policy=policy)
    whole, located = _whole_model(runtime.name, model, executors, batches, answers[0], answers[1])
    parts = list(whole)
    for unit, answer in zip(units, answers[2:], strict=True):
        got = _runs(answer, len(unit.cases))
        for comparison in compare_unit(unit, got, executor=runtime.name).values():
            parts.append(comparison)
            if located is None and comparison.first is not None:
                located = localise_unit(unit, got, comparison.first, refused=answer.refused)
    total = join(*parts)
    result = RuntimeResult(
        name=runtime.name,
        version=f"{info.name} {info.version}",
        cpu=info.cpu,
        # Those of the whole model, as for the runtime of this process; a unit may end in a tensor that is no
        # site.
        tensors=join(*whole).tensors,
        values=total.values,
        mismatches=total.mismatches,
    )
    return Elsewhere(result=result, first=total.first, located=located)


def _whole_model(
    name: str,
    model: Path,
    executors: Executors,
    batches: Sequence[Batch],
    codes: RuntimeAnswer,
    output: RuntimeAnswer,
) -> tuple[list[Comparison], Localisation | None]:
    """Comparisons of every batch, the one whose divergence comes first in graph order at the front, and that
    divergence's place.
    """
    position = {site: number for number, site in enumerate(executors.order)}
    source = executors.interpreter.plan.graph.inputs[0].name
    parts: list[Comparison] = []
    deployed: list[Comparison] = []
    earliest: tuple[int, Divergence, Batch, Evidence] | None = None
    for batch, got, alone in zip(
        batches, _runs(codes, len(batches)), _runs(output, len(batches)), strict=True
    ):
        given = {site: got[site] for site in executors.interpreter.entry_sites if site in got}
        # Behind a float island every runtime has codes of its own: the interpreter goes on from those.
        expected = executors.expected(batch.images, given) if given else batch.expected
        parts.append(
            compare(
                expected, got, order=executors.order, executor=name, inputs=batch.inputs, offset=batch.offset
            )
        )
        first = parts[-1].first
        if first is not None and (earliest is None or position[first.site] < earliest[0]):
            evidence = Evidence(
                feeds={source: batch.images},
                expected=expected,
                got=got,
                overrides=given,
                refused=codes.refused,
            )
            earliest = (position[first.site], first, batch, evidence)
        wanted = {
            executors.output: expected.get(executors.output, got.get(executors.output, batch.images[:0]))
        }
        deployed.append(
            compare(
                wanted,
                alone,
                order=[executors.output],
                executor=f"{name}, without code outputs",
                inputs=batch.inputs,
                offset=batch.offset,
            )
        )
    if earliest is None:
        return [*parts, *deployed], None
    _, first, batch, evidence = earliest
    local = replace(first, index=(first.index[0] - batch.offset, *first.index[1:]) if first.index else ())
    located = replace(localise(model, local, evidence), index=first.index)
    return [Comparison(first=first), *parts, *deployed], located


def _runs(answer: RuntimeAnswer, count: int) -> Sequence[Mapping[str, Array]]:
    """The runs of an answer; nothing for each where the model was refused, which then differs wholly."""
    nothing: Mapping[str, Array] = {}
    return answer.runs if not answer.refused else (nothing,) * count
