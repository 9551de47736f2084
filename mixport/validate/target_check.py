"""Does a file fit a target: opset, IR version, shapes, weight storage, code types, scales and operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from mixport.records.decision import Decision
from mixport.records.errors import InvariantError, TargetError
from mixport.records.targets import Target
from mixport.validate.interpreter.execution_plan import ExecutionPlan
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.kernels_movement import JOINS, MOVES

FITS, FAILS = "fits", "does not fit"
_MOVES_CODES = "movement of bare codes by "
_ALLOWED_MOVES = "allowed between DequantizeLinear and QuantizeLinear"


def check_against(model_path: Path | str | onnx.ModelProto, target: Target) -> tuple[Decision, ...]:
    """Check a file against a target.

    Returns:
        one decision a rule or offence: `what` is `fits` or `does not fit`, `why` has got and allowed.

    Raises:
        BadInputError: the file cannot be read.
    """
    interpreter = Interpreter(model_path)
    return tuple(_decisions(interpreter, target))


def _decisions(interpreter: Interpreter, target: Target) -> Iterator[Decision]:
    plan, rules = interpreter.plan, target.graph
    proto = plan.graph.proto
    yield _decide(
        "opset",
        plan.graph.opset <= rules.opset_max,
        f"opset {plan.graph.opset}, allowed up to {rules.opset_max}",
    )
    yield _decide(
        "IR version",
        proto.ir_version <= rules.ir_version_max,
        f"IR {proto.ir_version}, allowed up to {rules.ir_version_max}",
    )
    for port in plan.graph.inputs:
        sizes = port.shape or ()
        free = sizes if rules.shapes == "static" else sizes[1:]
        fits = bool(sizes) and None not in free
        yield _decide(f"input {port.name}", fits, f"shape {list(sizes)}, allowed {rules.shapes}")
    foreign = [node for node in plan.graph.nodes if "::" in node.op]
    for node in foreign:
        yield _decide(f"node {node.name}", False, f"{node.op} is a custom operator, allowed standard ones")
    for unit in interpreter.units:
        yield from _unit(unit, plan, target)
    for site in plan.sites:
        yield from _site(site.name, site.dtype.name, target)
    if target.scale.form == "power-of-two":
        yield from _scales(plan)
    if rules.moves == "own-units":
        yield from _bare_moves(plan)
    for name, reason in interpreter.island_reasons.items():
        yield Decision(where=f"node {name}", what=FITS, why=f"runs in float: {reason}")


def _unit(unit: FusedUnit, plan: ExecutionPlan, target: Target) -> Iterator[Decision]:
    where = f"node {unit.node.name}"
    if unit.kind not in ("requantise", "table", "function"):
        allowed = target.operators.integer
        yield _decide(where, unit.node.op in allowed, f"integer {unit.node.op}, allowed {', '.join(allowed)}")
    for source in unit.inputs:
        if target.activations.zero_point == "zero" and source.zero_point != 0:
            yield _decide(where, False, f"zero point {source.zero_point} of {source.name}, allowed 0")
    if unit.weight is None:
        return
    tensor = unit.node.input(1)
    while tensor in plan.graph.producer:
        tensor = plan.graph.producer[tensor].input(0)
    stored, kinds = plan.graph.stored.get(tensor, "").lower(), sorted(set(target.weights.storage.values()))
    yield _decide(f"weight {tensor}", stored in kinds, f"stored as {stored}, allowed {', '.join(kinds)}")
    if (
        target.weights.granularity == "per-tensor"
        and unit.weight_scale is not None
        and unit.weight_scale.size > 1
    ):
        yield _decide(f"weight {tensor}", False, "one scale a channel, allowed one scale a tensor")


def _scales(plan: ExecutionPlan) -> Iterator[Decision]:
    """Of activations, weights and biases alike: all have a DequantizeLinear."""
    for node in plan.graph.nodes:
        known = plan.constants.get(node.input(1)) if node.op == "DequantizeLinear" else None
        if known is None:
            continue
        scales = np.atleast_1d(np.asarray(known, np.float32))
        off = np.unique(scales[np.frexp(scales)[0] != 0.5])
        if off.size:
            yield _decide(f"scale {node.input(1)}", False, f"{off[0]}, allowed powers of two")


def _bare_moves(plan: ExecutionPlan) -> Iterator[Decision]:
    for node in plan.graph.nodes:
        if node.op not in MOVES and node.op not in JOINS:
            continue
        data = [plan.tensors.get(name) for name in (node.inputs if node.op in JOINS else node.inputs[:1])]
        if any(one is not None and one.kind == "codes" and not one.constant for one in data):
            yield _decide(f"node {node.name}", False, f"{_MOVES_CODES}{node.op}, {_ALLOWED_MOVES}")


def _site(name: str, dtype: str, target: Target) -> Iterator[Decision]:
    wide = {"int16", "uint16"} if 16 in target.activations.stream_bits else set[str]()
    kinds = {target.activations.storage} | wide
    if dtype not in kinds:
        yield _decide(f"site {name}", False, f"codes are {dtype}, allowed {', '.join(sorted(kinds))}")


def _decide(where: str, fits: bool, why: str) -> Decision:
    return Decision(where=where, what=FITS if fits else FAILS, why=why)


def require_fit(model_path: Path, target: Target) -> None:
    """Refuse a file that does not fit the target that it was made for.

    Raises:
        TargetError: the model needs an integer operator or 16-bit codes that the target does not have.
        InvariantError: any other rule is broken, which is our bug.
    """
    broken = [one for one in check_against(model_path, target) if one.what == FAILS]
    if not broken:
        return
    first, more = broken[0], f" ({len(broken) - 1} more)" if len(broken) > 1 else ""
    if all(one.why.startswith("codes are ") for one in broken):
        raise TargetError(
            f"target {target.name}: activations.stream_bits does not hold what the model needs: "
            f"{first.where}: {first.why}{more}",
            hint="add 16 to the target's [activations] stream_bits, or choose another --target",
        )
    if all(one.why.startswith(_MOVES_CODES) for one in broken):
        raise TargetError(
            f"target {target.name}: graph.moves 'own-units' does not have what the model needs: "
            f"{first.where}: {first.why}{more}",
            hint='a target with moves = "codes": tables and 16-bit codes are moved as they are',
        )
    if all(_names_operator(one) for one in broken):
        raise TargetError(
            f"target {target.name}: operators.integer does not hold what the model needs: "
            f"{first.where}: {first.why}{more}",
            hint="add the operator to the target's [operators] integer, or choose another --target",
        )
    raise InvariantError(
        f"the file does not fit its own target {target.name}: {first.where}: {first.why}{more}"
    )


def _names_operator(decision: Decision) -> bool:
    return decision.where.startswith("node ") and decision.why.startswith("integer ")
