"""manifest.json: what validation found."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator

from mixport.release.manifest_part import Part

Verdict = Literal["exact", "mismatch"]


class SessionPolicy(Part):
    """Session options that the claim names."""

    optimization_level: str
    threads: int
    config: dict[str, str] = Field(default_factory=dict)


class RuntimeResultEntry(Part):
    """What one executor gave."""

    name: str
    version: str
    cpu: str
    tensors: int
    values: int
    mismatches: int


class DecisionEntry(Part):
    """Something done, or declined, and why."""

    where: str
    what: str
    why: str


class DivergenceEntry(Part):
    """First difference of one executor."""

    site: str
    index: tuple[int, ...]
    expected: float | None
    got: float | None
    executor: str
    inputs: str

    @field_validator("expected", "got", mode="before")
    @classmethod
    def _finite(cls, value: object) -> object:
        # JSON has no NaN or infinity, which an output that differs may well be.
        return None if isinstance(value, float) and not math.isfinite(value) else value


class OperandEntry(Part):
    """A code tensor that a diverging node reads: its code at the position, or how many codes the position
    reads.
    """

    name: str
    code: int | None
    count: int


class LocalisationEntry(DivergenceEntry):
    """Where a runtime departs first: node, codes read, exact sum, likely cause and repair."""

    node: str
    op: str
    operands: tuple[OperandEntry, ...]
    accumulator: int | None
    exact: float | None
    cause: str
    explanation: str
    repair: str


class AuditEntry(Part):
    """Nodes of the optimised graph that run on integers and in float, by operator type."""

    integer_nodes: dict[str, int] = Field(default_factory=dict)
    float_nodes: dict[str, int] = Field(default_factory=dict)
    float_compute: tuple[DecisionEntry, ...] = ()
    fused_islands: tuple[DecisionEntry, ...] = ()


class ValidationEntry(Part):
    """The verdict and its evidence."""

    verdict: Verdict
    claim: str
    session_policy: SessionPolicy
    runtimes: tuple[RuntimeResultEntry, ...]
    proofs: dict[str, Any]
    float_islands: tuple[str, ...]
    divergences: tuple[DivergenceEntry, ...] = ()
    site_checks: dict[str, dict[str, int]] = Field(default_factory=dict)
    audit: AuditEntry = AuditEntry()
    localisations: tuple[LocalisationEntry, ...] = ()
