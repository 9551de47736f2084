"""The claim: one sentence that says what is exact, where, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence

from mixport.records.runtime import RuntimeInfo
from mixport.records.targets import SessionRules
from mixport.records.validation_report import Divergence, FusionAudit, RuntimeResult
from mixport.validate.crafted.check_units import SiteChecks
from mixport.validate.run.compare import Comparison
from mixport.validate.run.fusion_audit import integer_operator_count


def claim_of(
    native: Comparison,
    simulated: bool,
    checks: SiteChecks,
    audit: FusionAudit,
    info: RuntimeInfo,
    policy: SessionRules,
    islands: Sequence[str],
    divergences: Sequence[Divergence],
    elsewhere: Sequence[RuntimeResult] = (),
) -> str:
    """Write the sentence for a report; see `mixport.validate.validate`."""
    where = (
        f"{info.name} {info.version} ({info.cpu}), optimisation level {policy.optimization_level}, "
        f"{_count(policy.threads, 'thread')}"
    )
    if divergences:
        first = divergences[0]
        return (
            f"Codes differ: first at {first.site}{list(first.index)} on {first.inputs}, expected "
            f"{first.expected:g}, "
            f"{first.executor} gave {first.got:g}; {where}"
        )
    operators = integer_operator_count(audit)
    checked = sum(count["values"] for count in checks.counts.values())
    others = "the simulation and " if simulated else ""
    return (
        f"All {native.values} values of {_count(native.tensors, 'tensor')} and {checked} values of "
        "crafted operator checks are the same in "
        f"the integer interpreter, {others}{where}; "
        f"{_elsewhere(elsewhere)}{_count(operators, 'integer operator')} at run time, "
        f"{_count(len(islands), 'float island')} excluded"
    )


def _elsewhere(results: Sequence[RuntimeResult]) -> str:
    if not results:
        return ""
    named = ", ".join(
        f"{result.name} ({result.version}, {result.cpu}: {result.values} values)" for result in results
    )
    return f"the same on {named}; "


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
