"""The integers of a file's fused layers, and the facts of its nodes, as a static proof needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixport.arithmetic.affine_tables import FORM as REQUANTISATION
from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS
from mixport.records.graph_facts import FileFacts, Form, LayerFacts, NodeFacts, OutputCodes
from mixport.validate.interpreter.classify import TABLES
from mixport.validate.interpreter.execution_plan import ExecutionPlan, Step
from mixport.validate.interpreter.float_tables import float_function
from mixport.validate.interpreter.fused_units import CodeInput, FusedUnit
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.kernels_movement import JOINS, MOVES

_FORMS: Mapping[str, Form] = {
    "add": "add",
    "multiply": "multiply",
    "average": "average",
    "requantise": "requantise",
    "table": "table",
    "function": "function",
}


def facts_of(
    interpreter: Interpreter,
    *,
    input_shape: tuple[int, ...],
    pair_limit: int | None = None,
    portable: bool = True,
) -> FileFacts:
    """Nodes and layers of a file, in graph order.

    A product of two code tensors is left out of the layers where its inner size cannot be inferred.

    Args:
        interpreter: of the file.
        input_shape: of the model's input; inner sizes of products follow from it.
        pair_limit: of the target.
        portable: of the target.
    """
    shapes = interpreter.inferred_shapes(input_shape)
    units = {unit.node.index: unit for unit in interpreter.units}
    found = (_layer(unit, shapes) for unit in interpreter.units if unit.kind in ("conv", "gemm", "matmul"))
    plan = interpreter.plan
    nodes = (
        _of_unit(units[s.node.index], plan) if s.node.index in units else _plain(s, plan)
        for s in told_steps(interpreter)
    )
    return FileFacts(
        nodes=tuple(nodes),
        layers=tuple(layer for layer in found if layer is not None),
        pair_limit=pair_limit,
        portable=portable,
    )


def told_steps(interpreter: Interpreter) -> tuple[Step, ...]:
    """Steps worth telling: without constants, shape arithmetic, DequantizeLinear and what another node has
    absorbed.
    """
    units = {unit.node.index for unit in interpreter.units}
    fused = {node.index for unit in interpreter.units for node in unit.nodes} - units
    return tuple(
        s
        for s in interpreter.plan.steps
        if s.node.index in units or (s.node.index not in fused and _computes(s, interpreter.plan))
    )


def _computes(step: Step, plan: ExecutionPlan) -> bool:
    kinds = {plan.tensors[name].kind for name in (*step.node.inputs, *step.node.outputs) if name}
    return step.how not in ("constant", "dequantise", "pass", "shape", "source") and kinds != {"index"}


def site_of(step: Step, plan: ExecutionPlan) -> str:
    """Name of what a node gives: the site's, where a Clip behind it gives the codes."""
    return next(
        (s.name for s in plan.sites if step.node.outputs[0] in (s.name, s.node.input(0))),
        step.node.outputs[0],
    )


def _of_unit(unit: FusedUnit, plan: ExecutionPlan) -> NodeFacts:
    form: Form = _FORMS.get(unit.kind) or ("layer" if unit.weight is not None else "product")
    ends = (
        ()
        if unit.kind not in ("add", "multiply") or unit.saturation is None
        else (*unit.inputs, unit.saturation)
    )
    return NodeFacts(
        node=unit.node.name,
        op=unit.node.op,
        site=unit.site,
        form=form,
        scales=tuple(float(end.scale) for end in ends),
        zero_points=tuple(int(end.zero_point) for end in ends),
        ranges=tuple((int(end.low), int(end.high)) for end in ends),
        wrong="; ".join(filter(None, (unit.warning, _other_quantisation(unit.node, plan)))),
    )


def _plain(step: Step, plan: ExecutionPlan) -> NodeFacts:
    node = step.node
    form: Form = "elementwise"
    if step.how == "island":
        form = "float"
    elif step.how in ("move", "join") or (node.op == "Clip" and plan.tensors[node.input(0)].kind == "codes"):
        form = "movement"
    elif step.how == "quantise":
        form = "quantise"
    elif step.pairs:
        form = "function"
    scales, zero_points = _meeting(node, plan) if form == "float" and node.op == "Add" else ((), ())
    return NodeFacts(
        node=node.name,
        op=node.op,
        site=site_of(step, plan),
        form="add" if scales else form,
        reason=step.reason,
        scales=scales,
        zero_points=zero_points,
        wrong=_other_quantisation(node, plan),
    )


def _meeting(node: Node, plan: ExecutionPlan) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scales and zero points of an Add of codes that is quantised again; empty where it is something else."""
    readers = plan.graph.consumers.get(node.outputs[0], ())
    inputs = [plan.tensors[name].quantisation for name in node.inputs]
    if len(readers) != 1 or readers[0].op != "QuantizeLinear" or any(one is None for one in inputs):
        return (), ()
    scale, zero_point = (plan.graph.constants.get(readers[0].input(i)) for i in (1, 2))
    if scale is None or zero_point is None:
        return (), ()
    known = [one for one in inputs if one is not None]
    scales = (*(float(one.one_scale) for one in known), float(scale.reshape(-1)[0]))
    return scales, (*(one.one_zero_point for one in known), int(zero_point.reshape(-1)[0]))


def _factor(quantiser: Node, plan: ExecutionPlan) -> Array:
    """Power of two that a product was multiplied by just before its 16-bit codes were made; 1 anywhere else.

    The file may undo it in the scale (lower.wide_codes): then codes are read with the quantiser's scale
    divided by it. A factor of the model itself looks the same, and is not undone.
    """
    none, zero_point = np.ones((), np.float32), plan.graph.constants.get(quantiser.input(2))
    source = plan.graph.producer.get(quantiser.input(0))
    if source is None or source.op != "Mul" or zero_point is None or zero_point.dtype.itemsize != 2:
        return none
    product = plan.graph.producer.get(source.input(0))
    factor = plan.graph.constants.get(source.input(1))
    if product is None or product.op not in ("Gemm", "MatMul") or factor is None or factor.size != 1:
        return none
    return factor.reshape(()) if np.frexp(factor.item())[0] == 0.5 else none


def _other_quantisation(node: Node, plan: ExecutionPlan) -> str:
    """Says where an input is dequantised with another scale or zero point than it was quantised with."""
    if node.op == "Sub" and [user.op for user in plan.graph.consumers.get(node.outputs[0], ())] == ["Exp"]:
        return ""  # scores are read with the step of their exponents
    if _is_requantisation(node):
        return ""  # a straight table: both quantisers have scales of their own
    for name in node.inputs:
        reader = plan.graph.producer.get(name)
        if reader is None or reader.op != "DequantizeLinear" or plan.tensors[name].constant:
            continue
        maker = plan.graph.producer.get(reader.input(0))
        while (
            maker is not None
            and maker.op != "QuantizeLinear"
            and (maker.op in MOVES or maker.op in JOINS or maker.op == "Clip")
        ):
            # A Clip among several readers is a table that bounds its index: its codes have a scale of their
            # own.
            relabels = maker.op in TABLES or (
                maker.op == "Clip" and len(plan.graph.consumers.get(maker.input(0), ())) > 1
            )
            maker = None if relabels else plan.graph.producer.get(maker.input(0))
        if (
            maker is None
            or maker.op != "QuantizeLinear"
            or _is_requantisation(plan.graph.producer.get(maker.input(0)))
        ):
            continue
        for position, what in ((1, "scale"), (2, "zero point")):
            made, read = (plan.graph.constants.get(one.input(position)) for one in (maker, reader))
            if made is None or read is None:
                continue
            undone = made / _factor(maker, plan) if position == 1 else made
            if not np.array_equal(made, read) and not np.array_equal(undone, read):
                return f"{reader.input(0)} is quantised with {what} {made!s} and read with {what} {read!s}"
    return ""


def _is_requantisation(node: Node | None) -> bool:
    return node is not None and float_function(node) is FLOAT_FUNCTIONS[REQUANTISATION]


def _layer(unit: FusedUnit, shapes: Mapping[str, tuple[int | None, ...]]) -> LayerFacts | None:
    source = unit.inputs[0]
    y = None
    if unit.saturation is not None:
        y = OutputCodes(
            scale=float(unit.saturation.scale),
            zero_point=unit.saturation.zero_point,
            low=unit.low,
            high=unit.high,
        )
    other = unit.inputs[1] if len(unit.inputs) > 1 else None
    products = (
        int(np.prod(unit.weight.shape[1:]))
        if unit.weight is not None
        else (shapes.get(source.name) or (None,))[-1]
    )
    if products is None or (unit.weight is None and other is None):
        return None
    if unit.weight is None:
        w_scale = np.array([other.scale] if other is not None else [1], np.float32)
    else:
        assert unit.weight_scale is not None
        w_scale = unit.weight_scale.reshape(-1)
    return LayerFacts(
        site=unit.output,
        node=unit.node.name,
        op=unit.node.op,
        weights=unit.weight,
        bias=unit.bias,
        left=_range(source),
        right=_range(other) if unit.weight is None and other is not None else None,
        products=products,
        groups=int(unit.node.attributes.get("group", 1)),
        x_scale=float(source.scale),
        w_scale=w_scale,
        y=y,
        weight_zero_point=unit.weight_zero_point,
        signed=(_is_signed(source.dtype), unit.weight_signed if other is None else _is_signed(other.dtype)),
    )


def _is_signed(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "i"


def _range(source: CodeInput) -> tuple[int, int, int]:
    return source.low, source.high, source.zero_point
