"""What validation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mixport.records.decision import Decision


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """First difference between two executors.

    Attributes:
        site: code tensor, or `output`.
        index: position inside it.
        expected: value by the interpreter.
        got: value by the other executor.
        executor: who differs, e.g. `onnxruntime` or `simulation`.
        inputs: which inputs showed it, e.g. `images` or `near-tie`.
    """

    site: str
    index: tuple[int, ...]
    expected: float
    got: float
    executor: str
    inputs: str


@dataclass(frozen=True, kw_only=True)
class RuntimeResult:
    """What one runtime gave: counts over every tensor compared."""

    name: str
    version: str
    cpu: str
    tensors: int
    values: int
    mismatches: int


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One code tensor that the node of a divergence reads.

    Attributes:
        name: of the tensor.
        code: the code at the diverging position, None where the position reads many or cannot be told.
        count: how many codes the position reads: the receptive window of a convolution, a row of a product.
    """

    name: str
    code: int | None
    count: int


Cause = Literal[
    "refused",
    "shape",
    "pair-saturation",
    "fused-multiply-add",
    "unfused-float",
    "tie",
    "float-operators",
    "swapped-channel",
    "other-data",
    "other-arithmetic",
]
"""Why a runtime may have given another value; see `mixport.validate.localise.localise`."""


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """Where a runtime departs from the interpreter first, and why it likely does.

    Attributes:
        site: first diverging tensor in graph order.
        index: position inside it, in the batch that was run; empty where none can be named.
        executor: who differs.
        inputs: which inputs showed it.
        expected: value by the interpreter.
        got: value by the runtime.
        node: the node whose result it is.
        op: its operator.
        operands: code tensors that it reads.
        accumulator: the exact sum at the position, bias included; None where the node has none.
        exact: the value before rounding, in codes; None where it cannot be told.
        cause: likely cause.
        explanation: one sentence on the cause.
        repair: what to change.
    """

    site: str
    index: tuple[int, ...]
    executor: str
    inputs: str
    expected: float
    got: float
    node: str
    op: str
    operands: tuple[Operand, ...]
    accumulator: int | None
    exact: float | None
    cause: Cause
    explanation: str
    repair: str

    def text(self) -> str:
        """One line for people."""
        codes = [
            f"{one.name}={one.code}" if one.code is not None else f"{one.count} codes of {one.name}"
            for one in self.operands
        ]
        read = f" reads {', '.join(codes)}" if codes else ""
        total = "" if self.accumulator is None else f", accumulator {self.accumulator}"
        return (
            f"{self.executor} differs first at {self.site}{list(self.index)} on {self.inputs}: "
            f"expected {self.expected:g}, got {self.got:g}; "
            f"node {self.node} ({self.op}){read}{total}; {self.cause}: {self.explanation}"
        )


@dataclass(frozen=True, kw_only=True)
class FusionAudit:
    """What the runtime's optimiser made of the graph.

    Attributes:
        integer_nodes: nodes of the optimised graph that run on integers, by operator type.
        float_nodes: nodes that run in float, by operator type.
        float_compute: quantisable nodes (Conv, Gemm, MatMul, ...) that stayed float, with the reason.
        fused_islands: integer operators that the optimiser put in the place of a float island; they are
            compared with the float operator.
    """

    integer_nodes: Mapping[str, int]
    float_nodes: Mapping[str, int]
    float_compute: tuple[Decision, ...]
    fused_islands: tuple[Decision, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The verdict and its evidence.

    Attributes:
        verdict: `exact` or `mismatch`.
        claim: one sentence with its scope.
        session_policy: optimization_level, threads, config.
        runtimes: one result a runtime, and one for the simulation.
        divergences: first divergence of each executor that differs.
        float_islands: names of float nodes outside the claim.
        site_checks: adversarial checks, {kind: {sites, values, mismatches}}.
        audit: fusion audit of the file.
        proofs: static bounds by name.
        localisations: where each runtime that differs does so first, and the likely cause.
        entry_sites: sites directly behind a float operator that is not bit-portable: their codes are outside
            the claim.
    """

    verdict: str
    claim: str
    session_policy: Mapping[str, object]
    runtimes: tuple[RuntimeResult, ...]
    divergences: tuple[Divergence, ...]
    float_islands: tuple[str, ...]
    site_checks: Mapping[str, Mapping[str, int]]
    audit: FusionAudit
    proofs: Mapping[str, object] = field(default_factory=dict[str, object])
    localisations: tuple[Localisation, ...] = ()
    entry_sites: tuple[str, ...] = ()
