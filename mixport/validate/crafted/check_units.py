"""Checks of every fused unit by itself, on inputs crafted from its own integers, with tolerance 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from mixport.records.decision import Decision
from mixport.records.errors import BadInputError, InvariantError
from mixport.records.progress import Progress, SilentProgress
from mixport.records.targets import SessionRules
from mixport.records.validation_report import Divergence, Localisation
from mixport.validate.crafted.cases import CraftedCase, cases_for
from mixport.validate.crafted.cut import cut_unit, input_names
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.graph import Array
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.localise.localise import Evidence, localise
from mixport.validate.run.compare import Comparison, compare, join
from mixport.validate.run.session import open_session


@dataclass(frozen=True, kw_only=True)
class SiteChecks:
    """What the checks found.

    Attributes:
        counts: {`operator: kind`: {sites, values, mismatches}}.
        first: first divergence, in graph order.
        skipped: units that could not be checked by themselves, and why.
        located: where and why the first divergence is.
    """

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    first: Divergence | None = None
    skipped: tuple[Decision, ...] = ()
    located: Localisation | None = None

    @property
    def mismatches(self) -> int:
        """Over all kinds."""
        return sum(count["mismatches"] for count in self.counts.values())


@dataclass(frozen=True, kw_only=True)
class UnitCheck:
    """One unit cut out of the file, with its crafted inputs and what they must give.

    Attributes:
        unit: of the file.
        model: its own model, serialised.
        cases: crafted inputs.
        expected: output by the interpreter, one a case.
    """

    unit: FusedUnit
    model: bytes
    cases: tuple[CraftedCase, ...]
    expected: tuple[Array, ...]

    @property
    def output(self) -> str:
        """Name of the unit's output."""
        return self.unit.output


Prepared = tuple[tuple[UnitCheck, ...], tuple[Decision, ...]]


def prepare_units(
    model: Path | str | onnx.ModelProto,
    *,
    input_shape: tuple[int, ...],
    seed: int = 0,
    progress: Progress | None = None,
) -> Prepared:
    """Cut out every fused unit, craft its inputs and compute what they give.

    Args:
        model: the file.
        input_shape: of the model's input, with any batch: sizes of pooling windows follow from it.
        seed: of every random choice.
        progress: told after every unit.

    Returns:
        checks in graph order, and the units that cannot be checked by themselves, with the reason.
    """
    interpreter = Interpreter(model)
    shapes = interpreter.inferred_shapes(input_shape)
    checks: list[UnitCheck] = []
    skipped: list[Decision] = []
    with (progress or SilentProgress()).track(
        "checking operators", total=len(interpreter.units), unit="operators"
    ) as advance:
        for number, unit in enumerate(interpreter.units):
            advance(1)
            if unit.uncut:
                skipped.append(Decision(where=unit.output, what="not checked by itself", why=unit.uncut))
                continue
            rng = np.random.default_rng((seed, number))
            checks.append(_prepare(unit, interpreter, cases_for(unit, shapes=shapes, rng=rng)))
    return tuple(checks), tuple(skipped)


def check_sites(
    model: Path | str | onnx.ModelProto,
    *,
    policy: SessionRules,
    input_shape: tuple[int, ...],
    seed: int = 0,
    progress: Progress | None = None,
) -> SiteChecks:
    """Cut out every fused unit and compare the runtime of this process with the interpreter on crafted codes.

    Args:
        model: the file.
        policy: session policy.
        input_shape: of the model's input, with any batch.
        seed: of every random choice.
        progress: told after every unit.
    """
    return check_prepared(
        prepare_units(model, input_shape=input_shape, seed=seed, progress=progress), policy=policy
    )


def check_prepared(prepared: Prepared, *, policy: SessionRules) -> SiteChecks:
    """Compare the runtime of this process with what the interpreter gave."""
    checks, skipped = prepared
    found: dict[str, list[Comparison]] = {}
    first: Divergence | None = None
    located: Localisation | None = None
    for check in checks:
        session = open_session(onnx.ModelProto.FromString(check.model), policy=policy)
        got = [{check.output: session.run(None, dict(case.feeds))[0]} for case in check.cases]
        for kind, comparison in compare_unit(check, got, executor="onnxruntime").items():
            found.setdefault(f"{check.unit.kind}: {kind}", []).append(comparison)
            if first is None and comparison.first is not None:
                first, located = comparison.first, localise_unit(check, got, comparison.first)
    return SiteChecks(
        counts={kind: _count(parts) for kind, parts in sorted(found.items())},
        first=first,
        skipped=skipped,
        located=located,
    )


def compare_unit(
    check: UnitCheck, got: Sequence[Mapping[str, Array]], *, executor: str
) -> dict[str, Comparison]:
    """Compare one unit's outputs, one mapping a case, by kind of case."""
    found: dict[str, Comparison] = {}
    for case, expected, arrays in zip(check.cases, check.expected, got, strict=True):
        comparison = compare(
            {check.output: expected}, arrays, order=[check.output], executor=executor, inputs=case.kind
        )
        found[case.kind] = join(found.get(case.kind, Comparison()), comparison)
    return found


def localise_unit(
    check: UnitCheck, got: Sequence[Mapping[str, Array]], divergence: Divergence, *, refused: str = ""
) -> Localisation:
    """Place a unit's first divergence: the case that shows it tells the codes that it read."""
    for case, expected, arrays in zip(check.cases, check.expected, got, strict=True):
        wanted = {check.output: expected}
        alone = compare(
            wanted, arrays, order=[check.output], executor=divergence.executor, inputs=case.kind
        ).first
        if case.kind == divergence.inputs and alone is not None:
            evidence = Evidence(feeds=case.feeds, expected=wanted, got=arrays, refused=refused)
            return localise(onnx.ModelProto.FromString(check.model), alone, evidence)
    raise InvariantError(f"no case of unit {check.output} shows its divergence")


def _prepare(unit: FusedUnit, whole: Interpreter, cases: tuple[CraftedCase, ...]) -> UnitCheck:
    ranks = [cases[0].feeds[name].ndim for name in input_names(unit)]
    model = cut_unit(unit, whole.plan.graph, ranks=ranks)
    interpreter = Interpreter(model)
    expected: list[Array] = []
    for case in cases:
        output = interpreter.run_feeds(case.feeds).outputs[unit.output]
        if output is None:
            raise BadInputError(
                f"unit {unit.output} holds a float island: {', '.join(interpreter.island_names)}"
            )
        expected.append(output)
    return UnitCheck(unit=unit, model=model.SerializeToString(), cases=cases, expected=tuple(expected))


def _count(parts: list[Comparison]) -> Mapping[str, int]:
    total = join(*parts)
    return {"sites": len(parts), "values": total.values, "mismatches": total.mismatches}
