"""Run the kit on a runtime: every graph in one call, every answer compared with tolerance 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import mixport
from mixport.records.errors import RuntimeUnavailableError
from mixport.records.fingerprint import sha256_arrays, sha256_bytes, sha256_json
from mixport.records.progress import Progress, SilentProgress
from mixport.records.runtime import Runtime, RuntimeAnswer, RuntimeJob
from mixport.records.targets import SessionRules
from mixport.validate.conformance.catalogue import FORMS, cases_of
from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.measured import ConformanceResult, FormDifference, FormResult
from mixport.validate.interpreter.graph import Array
from mixport.validate.run.compare import Comparison, compare, join
from mixport.validate.runtimes import split_name

_NOTHING: Mapping[str, Array] = {}


@dataclass(frozen=True, kw_only=True)
class Kit:
    """Graphs of some forms, made once for all runtimes.

    Attributes:
        forms: with their graphs.
        sha256: of the graphs and inputs.
    """

    forms: tuple[tuple[Form, tuple[FormCase, ...]], ...]
    sha256: str

    @property
    def graphs(self) -> int:
        """How many there are."""
        return sum(len(cases) for _, cases in self.forms)

    @property
    def values(self) -> int:
        """Numbers that are compared on one runtime."""
        return sum(case.values for _, cases in self.forms for case in cases)


def make_kit(forms: Sequence[Form] = FORMS, *, progress: Progress | None = None) -> Kit:
    """Build the graphs, and their answers by mixport's own arithmetic."""
    made: list[tuple[Form, tuple[FormCase, ...]]] = []
    with (progress or SilentProgress()).track("making graphs", total=len(forms), unit="forms") as advance:
        for form in forms:
            made.append((form, cases_of(form)))
            advance(1)
    return Kit(
        forms=tuple(made),
        sha256=sha256_json({form.name: [_case_sha256(case) for case in cases] for form, cases in made}),
    )


def run_kit(kit: Kit, runtime: Runtime, *, policy: SessionRules) -> ConformanceResult:
    """Run every graph on a runtime, in one call, and compare.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, breaks off, or does not answer every job.
    """
    jobs = [
        RuntimeJob(model=case.model, feeds=[run.feeds for run in case.runs], outputs=case.outputs)
        for _, cases in kit.forms
        for case in cases
    ]
    info, answers = runtime.run(jobs, policy=policy)
    if len(answers) != len(jobs):
        raise RuntimeUnavailableError(
            f"runtime {runtime.name} gave {len(answers)} answers to {len(jobs)} jobs",
            hint=f"mixport runtimes install {runtime.name}",
        )
    forms: dict[str, FormResult] = {}
    position = 0
    for form, cases in kit.forms:
        forms[form.name] = judge(cases, answers[position : position + len(cases)], runtime=runtime.name)
        position += len(cases)
    return ConformanceResult(
        mixport=mixport.__version__,
        name=split_name(runtime.name).base,
        runtime=info,
        session=policy,
        kit_sha256=kit.sha256,
        forms={name: forms[name] for name in sorted(forms)},
    )


def judge(cases: Sequence[FormCase], answers: Sequence[RuntimeAnswer], *, runtime: str) -> FormResult:
    """Compare one form's answers; an answer that is missing, of another shape or of another type counts as
    wholly different.
    """
    total = Comparison()
    hashes: list[str] = []
    refused: list[str] = []
    for case, answer in zip(cases, answers, strict=True):
        if answer.refused:
            refused.append(f"{case.name}: {answer.refused}")
            hashes.append("")
            continue
        for position, run in enumerate(case.runs):
            got = answer.runs[position] if position < len(answer.runs) else _NOTHING
            typed = {
                name: array
                for name, array in got.items()
                if name in run.expected and array.dtype == run.expected[name].dtype
            }
            inputs = f"{case.name}: {run.kind}"
            total = join(
                total, compare(run.expected, typed, order=case.outputs, executor=runtime, inputs=inputs)
            )
            hashes.append(_answer_sha256(got))
    first = total.first
    difference = None
    if first is not None:
        difference = FormDifference(
            case=first.inputs, index=first.index, expected=_finite(first.expected), got=_finite(first.got)
        )
    return FormResult(
        cases=len(cases),
        values=sum(case.values for case in cases),
        mismatches=total.mismatches,
        exact=not total.mismatches and not refused,
        outputs_sha256=sha256_json(hashes),
        refused=len(refused),
        message=refused[0][:400] if refused else "",
        first=difference,
    )


def _case_sha256(case: FormCase) -> list[str]:
    # Without the inputs' values: which of two equally near ties a crafted input aims at depends on NumPy's
    # partition.
    shapes = [
        f"{run.kind}: "
        + ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in run.feeds.items())
        for run in case.runs
    ]
    return [case.name, sha256_bytes(case.model), *shapes]


def _answer_sha256(got: Mapping[str, Array]) -> str:
    return sha256_arrays({name: _canonical(array) for name, array in got.items()})


def _canonical(array: Array) -> Array:
    """One spelling of equal values: no negative zero, one NaN."""
    if array.dtype.kind != "f":
        return array
    plain = array + np.zeros((), array.dtype)
    return np.where(np.isnan(plain), np.asarray(np.nan, array.dtype), plain)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
