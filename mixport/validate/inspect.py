"""What a file is made of, for people: every operator, integer or float, its bits, its bound, and how portable
its codes are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx

from mixport.records.graph_facts import Prover
from mixport.validate.facts import facts_of, site_of, told_steps
from mixport.validate.interpreter.execution_plan import ExecutionPlan, Step
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.target_check import check_against

Compute = Literal["integer", "float", "movement"]


@dataclass(frozen=True, kw_only=True)
class NodeDescription:
    """One operator of the file, with everything that fuses into it.

    Attributes:
        name: of the node.
        op: ONNX operator.
        output: tensor that it gives; the site's name where it gives codes.
        compute: integer, float, or movement.
        weight_bits: from the initialiser's type, or from the range of its values; None without weights.
        activation_bits: of the codes that it reads; None where it reads floats.
        accumulator_bound: largest reachable |sum|; None where there is no sum, where its length is unknown,
            and without proofs.
        portability: how far other machines give the same codes: `exact by proof`, `exact on measured
            runtimes`, `not portable`, `float`; None without proofs.
        why: one reason, in words.
    """

    name: str
    op: str
    output: str
    compute: Compute
    weight_bits: int | None
    activation_bits: int | None
    accumulator_bound: int | None = None
    portability: str | None = None
    why: str = ""


def describe(
    model_path: Path | str | onnx.ModelProto,
    *,
    prove: Prover | None = None,
    input_shape: tuple[int, ...] | None = None,
    pair_limit: int | None = None,
) -> tuple[NodeDescription, ...]:
    """Describe every operator in graph order, leaving out constants, shape arithmetic and what has fused into
    another.

    Args:
        model_path: the file.
        prove: gives accumulator bounds and portability classes; they are None without it.
        input_shape: of its input, where symbolic axes keep sizes unknown; by default the file's own with 1
            for symbolic axes.
        pair_limit: what two neighbouring products may reach; None for what int16 holds.
    """
    interpreter = Interpreter(model_path)
    plan = interpreter.plan
    units = {unit.node.index: unit for unit in interpreter.units}
    told = told_steps(interpreter)
    described = [
        _unit(units[step.node.index], plan) if step.node.index in units else _plain(step, plan)
        for step in told
    ]
    if prove is None:
        return tuple(described)
    proofs = prove(facts_of(interpreter, input_shape=input_shape or _own_shape(plan), pair_limit=pair_limit))
    bounds = {record["site"]: int(record["magnitude"]) for record in proofs["sites"]}
    return tuple(
        replace(
            one,
            accumulator_bound=bounds.get(one.output),
            portability=record["portability"],
            why=record["why"],
        )
        for one, record in zip(described, proofs["nodes"], strict=True)
    )


def _own_shape(plan: ExecutionPlan) -> tuple[int, ...]:
    shape = plan.graph.inputs[0].shape or ()
    return tuple(size or 1 for size in shape)


def _unit(unit: FusedUnit, plan: ExecutionPlan) -> NodeDescription:
    source = unit.inputs[0] if unit.inputs else None
    return NodeDescription(
        name=unit.node.name,
        op=unit.node.op,
        output=unit.site,
        compute="integer" if unit.kind not in ("requantise", "function") else "float",
        weight_bits=_weight_bits(unit, plan),
        activation_bits=None if source is None else _bits(source.low, source.high),
    )


def _plain(step: Step, plan: ExecutionPlan) -> NodeDescription:
    node = step.node
    codes = plan.tensors[node.input(0)]
    reads_codes = codes.kind in ("codes", "dequantised") and not codes.constant
    moves = step.how in ("move", "join") or (node.op == "Clip" and codes.kind == "codes")
    return NodeDescription(
        name=node.name,
        op=node.op,
        output=site_of(step, plan),
        compute="movement" if moves else "float",
        weight_bits=None,
        activation_bits=_bits(codes.low, codes.high) if reads_codes else None,
        why=step.reason,
    )


def _weight_bits(unit: FusedUnit, plan: ExecutionPlan) -> int | None:
    if unit.weight is None:
        return None
    tensor = unit.node.input(1)
    while tensor in plan.graph.producer:
        tensor = plan.graph.producer[tensor].input(0)
    stored = plan.graph.stored.get(tensor, "")
    if stored in ("INT2", "INT4"):
        return int(stored[3:])
    low, high = (int(unit.weight.min()), int(unit.weight.max())) if unit.weight.size else (0, 0)
    return max(2, *((-low - 1).bit_length() + 1 if low < 0 else 0, high.bit_length() + 1))


def _bits(low: int, high: int) -> int:
    return max(1, (high - low).bit_length())


__all__ = ["NodeDescription", "check_against", "describe"]
