"""What a file is made of, for people: every operator, integer or float, its bits, its bound, and how portable its codes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from mixport.validate.interpreter import Interpreter
from mixport.validate.layers import Prover, layers_of
from mixport.validate.plan import Plan, Step
from mixport.validate.target_check import check_against
from mixport.validate.units import FusedUnit

Portability = Literal["exact by construction", "IEEE float", "float island"]

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
        accumulator_bound: largest reachable |sum|; None where there is no sum, or where its length is unknown.
        portability: whether other runtimes give the same codes.
        why: one reason, in words.
    """

    name: str
    op: str
    output: str
    compute: Compute
    weight_bits: int | None
    activation_bits: int | None
    accumulator_bound: int | None
    portability: Portability
    why: str


def describe(
    model_path: Path | str | onnx.ModelProto, *, prove: Prover | None = None, input_shape: tuple[int, ...] | None = None
) -> tuple[NodeDescription, ...]:
    """Describe every operator in graph order, leaving out constants, shape arithmetic and what has fused into another.

    Args:
        model_path: the file.
        prove: gives the accumulator bounds; they are None without it.
        input_shape: of its input, where symbolic axes keep sizes unknown; by default the file's own with 1 for symbolic axes.
    """
    interpreter = Interpreter(model_path)
    plan = interpreter.plan
    layers = layers_of(interpreter, input_shape=input_shape or _own_shape(plan))
    bounds = {} if prove is None else {record["site"]: record for record in prove(layers)["sites"]}
    units = {unit.node.index: unit for unit in interpreter.units}
    fused = {node.index for unit in interpreter.units for node in unit.nodes} - units.keys()
    described = (
        _unit(units[step.node.index], plan, bounds) if step.node.index in units else _plain(step, plan)
        for step in plan.steps
        if step.node.index not in fused
    )
    return tuple(description for description in described if description is not None)


def _own_shape(plan: Plan) -> tuple[int, ...]:
    shape = plan.graph.inputs[0].shape or ()
    return tuple(size or 1 for size in shape)


def _unit(unit: FusedUnit, plan: Plan, bounds: Mapping[str, Mapping[str, Any]]) -> NodeDescription:
    bound = bounds.get(unit.output)
    why = "integer sums, one rounding"
    portability: Portability = "exact by construction"
    if unit.kind == "table":
        why = "a table has every answer"
    elif unit.kind == "add":
        why = "input scales are integer multiples of the output scale"
    elif unit.kind == "requantise":
        why, portability = "one IEEE multiplication and one division of codes", "IEEE float"
    elif unit.saturation is None:
        why = "integer sums, one IEEE multiplication to floats"
    if bound is not None and not bound["fits_int32"]:
        why = f"sums reach {bound['magnitude']}, beyond int32"
    elif bound is not None and not bound["pair_safe"]:
        why += "; x64 without VNNI saturates pairs of products"
    if unit.warning:
        why += f"; {unit.warning}"
    source = unit.inputs[0] if unit.inputs else None
    return NodeDescription(
        name=unit.node.name,
        op=unit.node.op,
        output=unit.output,
        compute="integer" if unit.kind != "requantise" else "float",
        weight_bits=_weight_bits(unit, plan),
        activation_bits=None if source is None else _bits(source.low, source.high),
        accumulator_bound=None if bound is None else int(bound["magnitude"]),
        portability=portability,
        why=why,
    )


def _plain(step: Step, plan: Plan) -> NodeDescription | None:
    node = step.node
    kinds = {plan.tensors[name].kind for name in (*node.inputs, *node.outputs) if name}
    if step.how in ("constant", "dequantise", "pass", "shape", "source") or kinds == {"index"}:
        return None
    codes = plan.tensors[node.input(0)]
    reads_codes = codes.kind in ("codes", "dequantised") and not codes.constant
    compute: Compute = "float"
    portability: Portability = "IEEE float"
    why = "correctly rounded IEEE operation" + (f"; no integer operator, since {step.reason}" if step.reason else "")
    if step.how == "island":
        portability, why = "float island", step.reason
    elif step.how in ("move", "join") or (node.op == "Clip" and codes.kind == "codes"):
        compute, portability, why = "movement", "exact by construction", "moves values, computes none"
    elif step.how == "quantise":
        why = "one IEEE division, then rounding half to even"
    site = next((s.name for s in plan.sites if node.outputs[0] in (s.name, s.node.input(0))), node.outputs[0])
    return NodeDescription(
        name=node.name,
        op=node.op,
        output=site,
        compute=compute,
        weight_bits=None,
        activation_bits=_bits(codes.low, codes.high) if reads_codes else None,
        accumulator_bound=None,
        portability=portability,
        why=why,
    )


def _weight_bits(unit: FusedUnit, plan: Plan) -> int | None:
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
