"""Fused units: the parts of a file that run as one integer operator, with the integers they run on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixport.validate.interpreter.classify import TABLES
from mixport.validate.interpreter.float_tables import Cone, float_function
from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.kernels_movement import MOVES
from mixport.validate.interpreter.values import Dequantised, Saturation, TensorInfo

if TYPE_CHECKING:
    from mixport.validate.interpreter.execution_plan import ExecutionPlan, Step

UnitKind = Literal["conv", "gemm", "matmul", "add", "multiply", "average", "requantise", "table", "function"]


@dataclass(frozen=True, kw_only=True)
class CodeInput:
    """One code tensor that a unit reads.

    Attributes:
        name: of the code tensor.
        low: smallest code that can occur.
        high: largest code that can occur.
        dtype: of the codes.
        scale: of the DequantizeLinear; 1 for a table.
        zero_point: of the DequantizeLinear; 0 for a table.
    """

    name: str
    low: int
    high: int
    dtype: np.dtype[Any]
    scale: np.float32
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class FusedUnit:
    """One integer operator of the file.

    Attributes:
        kind: what it computes.
        node: the compute node; QuantizeLinear for requantise, Gather or GatherElements for a table, the float
            operator for a function.
        inputs: code tensors that change with the model's input, in order.
        weight: centred integers, output channels first: [O, I / groups, ...] or [N, K]; None without a
            constant weight.
        weight_scale: float32 [O] or one value.
        weight_zero_point: what was subtracted from the stored weights.
        weight_signed: whether they are stored as signed integers.
        bias: int64 [O].
        saturation: output quantiser before the Clip; None where it gives floats.
        low: smallest output code, after the Clip.
        high: largest output code, after the Clip.
        output: name of the tensor that it gives: a site, or floats.
        nodes: in graph order, without those that compute constants.
        warning: something in the file that kernels may disagree on.
        named: name of the site, where that is another tensor than `output`.
        uncut: why the unit cannot be cut out as a model of its own, empty where it can.
    """

    kind: UnitKind
    node: Node
    inputs: tuple[CodeInput, ...]
    weight: NDArray[np.int64] | None
    weight_scale: NDArray[np.float32] | None
    bias: NDArray[np.int64] | None
    saturation: Saturation | None
    low: int
    high: int
    output: str
    nodes: tuple[Node, ...]
    warning: str = ""
    uncut: str = ""
    weight_zero_point: int = 0
    weight_signed: bool = True
    named: str = ""

    @property
    def site(self) -> str:
        """Name of the code tensor that the file is known by: a table's flat codes get their shape back in a
        tensor of their own.
        """
        return self.named or self.output


def fused_units(plan: ExecutionPlan) -> tuple[FusedUnit, ...]:
    """All units of a plan, in graph order."""
    return tuple(_units(plan))


def _units(plan: ExecutionPlan) -> Iterator[FusedUnit]:
    tables = {site.node.index: site.name for site in plan.sites if site.node.op in TABLES}
    for step in plan.steps:
        node = step.node
        if step.how == "fused":
            yield _fused(plan, step)
        elif step.cone is not None:
            yield _function(plan, step, step.cone)
        elif step.how == "quantise" and plan.tensors[node.input(0)].kind == "dequantised":
            yield _unit(plan, step, kind="requantise", data=(node.input(0),), chain=(node,))
        elif step.how == "move" and node.index in tables:
            yield _table(plan, node, tables[node.index])


def _fused(plan: ExecutionPlan, step: Step) -> FusedUnit:
    node = step.node
    assert step.kernel is not None
    data = node.inputs if step.kernel in ("add", "multiply", "matmul") else node.inputs[:1]
    return _unit(plan, step, kind=step.kernel, data=data, chain=(node, *step.absorbed))


def _unit(
    plan: ExecutionPlan, step: Step, *, kind: UnitKind, data: tuple[str, ...], chain: tuple[Node, ...]
) -> FusedUnit:
    uncut, inputs, before = "", list[CodeInput](), list[Node]()
    for name in data:
        if plan.tensors[name].constant:
            continue
        source = plan.graph.producer[name]
        if source.op != "DequantizeLinear":
            uncut = f"{source.op} {source.name} stands between DequantizeLinear and {step.node.op}"
            inputs.append(_code_input(name, plan.tensors[name]))
            continue
        before += [source] if source not in before else []
        inputs.append(_code_input(source.input(0), plan.tensors[name]))
    nodes, output = _with_clip(plan, chain) if step.saturation is not None else (chain, step.node.outputs[0])
    if any(node.op not in ("Relu", "QuantizeLinear", "Clip") for node in nodes[1:]):
        uncut = f"{nodes[1].op} {nodes[1].name} stands between {step.node.op} and QuantizeLinear"
    weight, scale, bias = _integers(plan, step.node)
    if kind in ("add", "multiply") and len(inputs) < 2:
        uncut = "one input is constant"
    info = plan.tensors[output]
    return FusedUnit(
        kind=kind,
        node=step.node,
        inputs=tuple(inputs),
        weight=weight,
        weight_scale=scale,
        bias=bias,
        saturation=step.saturation,
        low=info.low,
        high=info.high,
        output=output,
        nodes=(*before, *nodes),
        warning=step.reason,
        uncut=uncut,
        weight_zero_point=_weight_zero_point(plan, step.node),
        weight_signed=_weight_signed(plan, step.node),
    )


def _function(plan: ExecutionPlan, step: Step, cone: Cone) -> FusedUnit:
    nodes, output = _with_clip(plan, cone.nodes)
    dequantiser = next(node for node in cone.nodes if node.op == "DequantizeLinear")
    info = plan.tensors[output]
    return FusedUnit(
        kind="function",
        node=next(node for node in cone.nodes if float_function(node) is not None),
        inputs=(_code_input(cone.codes, plan.tensors[dequantiser.outputs[0]]),),
        weight=None,
        weight_scale=None,
        bias=None,
        saturation=step.saturation,
        low=info.low,
        high=info.high,
        output=output,
        nodes=nodes,
        uncut="data movement stands between the codes and the quantiser"
        if any(node.op in MOVES for node in nodes)
        else "",
    )


def _table(plan: ExecutionPlan, node: Node, site: str) -> FusedUnit:
    source = plan.graph.producer.get(node.input(1))
    info = plan.tensors[source.input(0) if source is not None and source.op == "Cast" else node.input(1)]
    direct = source is not None and source.op == "Cast" and info.kind == "codes"
    output = plan.tensors[node.outputs[0]]
    inputs = (_code_input(source.input(0), info),) if direct and source is not None else ()
    return FusedUnit(
        kind="table",
        node=node,
        inputs=inputs,
        weight=None,
        weight_scale=None,
        bias=None,
        saturation=None,
        low=output.low,
        high=output.high,
        output=node.outputs[0],
        nodes=(source, node) if direct and source is not None else (node,),
        uncut="" if direct else "its index is not the Cast of a code tensor",
        named=site,
    )


def _with_clip(plan: ExecutionPlan, chain: tuple[Node, ...]) -> tuple[tuple[Node, ...], str]:
    codes = chain[-1].outputs[0]
    readers = plan.graph.consumers.get(codes, ())
    if len(readers) == 1 and readers[0].op == "Clip" and not plan.graph.is_output(codes):
        return (*chain, readers[0]), readers[0].outputs[0]
    return chain, codes


def _code_input(name: str, info: TensorInfo) -> CodeInput:
    assert info.dtype is not None
    quantisation = info.quantisation
    return CodeInput(
        name=name,
        low=info.low,
        high=info.high,
        dtype=info.dtype,
        scale=np.float32(1) if quantisation is None else quantisation.one_scale,
        zero_point=0 if quantisation is None else quantisation.one_zero_point,
    )


def _weight_zero_point(plan: ExecutionPlan, node: Node) -> int:
    """Of the whole weight; 0 where there is none, and where each channel has its own, which kernels take only
    as 0.
    """
    value = _weight(plan, node)
    return (
        int(value.quantisation.zero_point.reshape(-1)[0])
        if value is not None and value.quantisation.zero_point.size == 1
        else 0
    )


def _weight_signed(plan: ExecutionPlan, node: Node) -> bool:
    value = _weight(plan, node)
    return value is None or value.codes.dtype.kind == "i"


def _weight(plan: ExecutionPlan, node: Node) -> Dequantised | None:
    value = plan.constants.get(node.input(1)) if node.op in ("Conv", "Gemm", "MatMul") else None
    return value if isinstance(value, Dequantised) else None


Integers = tuple[NDArray[np.int64] | None, NDArray[np.float32] | None, NDArray[np.int64] | None]


def _integers(plan: ExecutionPlan, node: Node) -> Integers:
    value = _weight(plan, node)
    if value is None:
        return None, None, None
    zero_point = value.quantisation.zero_point
    codes: NDArray[np.int64] = value.codes.astype(np.int64)
    if zero_point.size == 1:
        codes = codes - zero_point.reshape(-1)[0]
    bias = plan.constants.get(node.input(2))
    if node.op == "MatMul" or (node.op == "Gemm" and not node.attributes.get("transB", 0)):
        codes = np.moveaxis(codes, -1, 0)
    return (
        codes,
        value.quantisation.scale,
        bias.codes.astype(np.int64) if isinstance(bias, Dequantised) else None,
    )
