"""What each node of the float graph is to quantisation: the one table that says which operators carry codes,
and how.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import (
    argument,
    arguments,
    aten,
    constant,
    only_user,
    shape_of,
    tensor_arg,
    tensor_list_arg,
)
from mixport.quantize.graph.marks import CHANNEL_BOUNDS


class Kind(Enum):
    """Role of a node.

    INPUT: the image. LAYER: convolution or linear layer with constant weights. PRODUCT: matrix product of two
    activations. ADD, MULTIPLY: two activations meet. POOL: global average. CONCAT: activations side by side,
    same scale. MOVE: data movement, codes stay codes. CLAMP: Relu-like, absorbed by the quantiser that
    follows. UNARY: function of one value, a table. NORM: LayerNorm over the last axis, computed from codes.
    NUMERATORS: those of a softmax, computed from codes of its scores. FLOAT: stays float. CONSTANT: depends
    on no activation.
    """

    INPUT = "input"
    LAYER = "layer"
    PRODUCT = "product"
    ADD = "add"
    MULTIPLY = "multiply"
    POOL = "pool"
    CONCAT = "concat"
    MOVE = "move"
    CLAMP = "clamp"
    UNARY = "unary"
    NORM = "norm"
    NUMERATORS = "numerators"
    FLOAT = "float"
    CONSTANT = "constant"


_MOVES = {
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.index_select.default,
    aten.expand.default,
    aten.repeat.default,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.narrow.default,
    aten.roll.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    OPS.space_to_depth.default,
    aten.pad.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    operator.getitem,
}

CODE_MOVES = frozenset({*_MOVES, aten.constant_pad_nd.default})
"""Operators through which codes pass unchanged (a pad by real 0 adds the zero point)."""

_LAYERS: Mapping[Any, int] = MappingProxyType(
    {aten.conv1d.default: 3, aten.conv2d.default: 4, aten.linear.default: 2}
)
"""Operator -> rank of its input and of its weight."""
_SPLITS = {aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}
_PRODUCTS = {aten.matmul.default, aten.bmm.default}
_UNARY = {
    aten.silu.default,
    aten.gelu.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.tanh.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.relu.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.relu6.default,
    aten.exp.default,
    aten.abs.default,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.sqrt.default,
    aten.square.default,
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
}
_CONCATS = {aten.cat.default, aten.concat.default}


def classify(graph: fx.GraphModule) -> dict[fx.Node, Kind]:
    """Kind of every tensor-valued node, in graph order."""
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.graph.nodes:
        kinds[node] = _kind(graph, node, kinds)
    return kinds


def reads_one_value(node: fx.Node) -> bool:
    """True for a function of one value, as far as the operator and its tensors tell."""
    return (
        node.op == "call_function"
        and node.target in _UNARY
        and len(node.all_input_nodes) == 1
        and clamp_bounds(node) is None
    )


def clamp_bounds(node: fx.Node) -> tuple[float, float | None] | None:
    """(0, upper) of a Relu-like node, upper None when unbounded; None for any other node."""
    if CHANNEL_BOUNDS in node.meta:
        return node.meta[CHANNEL_BOUNDS]
    if node.target is aten.relu.default:
        return 0.0, None
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target in {aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default}:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        if not isinstance(low, (int, float)) or float(low) != 0.0:
            return None
        if high is None:
            return 0.0, None
        if isinstance(high, (int, float)) and float(high) > 0.0:
            return 0.0, float(high)
    return None


def _kind(graph: fx.GraphModule, node: fx.Node, kinds: dict[fx.Node, Kind]) -> Kind:
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "get_attr":
        return Kind.CONSTANT
    if node.op != "call_function":
        return Kind.FLOAT
    dynamic = [
        source for source in node.all_input_nodes if kinds[source] is not Kind.CONSTANT and _is_tensor(source)
    ]
    if not dynamic:
        return Kind.CONSTANT
    if node.target in _SPLITS:
        return Kind.MOVE if dynamic[0].meta.get("is_float", False) else Kind.FLOAT
    if node.target is operator.getitem and kinds[dynamic[0]] is not Kind.MOVE:
        return Kind.FLOAT  # one result of a float operator that has several
    if not node.meta.get("is_float", False) or not all(_carries_values(source) for source in dynamic):
        return Kind.FLOAT
    return _tensor_kind(graph, node, kinds, dynamic)


def _tensor_kind(
    graph: fx.GraphModule, node: fx.Node, kinds: dict[fx.Node, Kind], dynamic: list[fx.Node]
) -> Kind:
    tensors = [source for source in node.all_input_nodes if _is_tensor(source)]
    if node.target in _LAYERS:
        return Kind.LAYER if _is_layer(graph, node) else Kind.FLOAT
    if node.target in _PRODUCTS:
        return (
            Kind.PRODUCT
            if len(node.args) == 2 and all(isinstance(a, fx.Node) and a in dynamic for a in node.args)
            else Kind.FLOAT
        )
    if node.target is aten.layer_norm.default:
        return Kind.NORM if _is_norm(graph, node) else Kind.FLOAT
    if node.target is OPS.softmax_numerators.default:
        return Kind.NUMERATORS
    if node.target is OPS.global_average_pool.default:
        return Kind.POOL
    if node.target in _CONCATS:
        return Kind.CONCAT if all(source in dynamic for source in tensor_list_arg(node, 0)) else Kind.FLOAT
    if node.target is aten.add.Tensor and len(dynamic) == 2 and not node.kwargs:
        return Kind.ADD
    if node.target is aten.mul.Tensor and len(dynamic) == 2:
        return Kind.MULTIPLY
    if node.target in _MOVES:
        return Kind.MOVE
    if node.target is aten.constant_pad_nd.default:
        value = node.args[2] if len(node.args) > 2 else 0
        return Kind.MOVE if value == 0 else Kind.FLOAT
    alone = (
        len(tensors) == 1
        and tensors[0] is node.args[0]
        and not any(isinstance(a, fx.Node) for a in (*node.args[1:], *node.kwargs.values()))
    )
    if CHANNEL_BOUNDS in node.meta:
        return Kind.CLAMP
    if node.target in _UNARY and alone:
        behind_table = kinds[tensors[0]] is Kind.UNARY and only_user(tensors[0]) is node
        return Kind.CLAMP if clamp_bounds(node) is not None and not behind_table else Kind.UNARY
    return Kind.FLOAT


def _is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Batched input, constant float32 weight and bias."""
    weight, bias = constant(graph, node.args[1]), node.args[2] if len(node.args) > 2 else None
    rank = _LAYERS[node.target]
    if (
        weight is None
        or weight.dtype is not torch.float32
        or weight.dim() != rank
        or len(shape_of(tensor_arg(node, 0))) != rank
    ):
        return False
    if bias is None:
        return True
    values = constant(graph, bias)
    return values is not None and values.dtype is torch.float32 and values.dim() == 1


def _is_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Over the last axis alone, with constant float32 weight and bias or none."""
    _, axes, weight, bias = arguments(node, None, None, 1e-5, True, after=2)[:4]
    constants = [constant(graph, given) for given in (weight, bias) if given is not None]
    return len(axes) == 1 and all(value is not None and value.dtype is torch.float32 for value in constants)


def _carries_values(node: fx.Node) -> bool:
    """A float32 tensor with at least one axis, or the several results of a split."""
    return (bool(node.meta.get("is_float", False)) and shape_of(node) != ()) or bool(
        node.meta.get("is_tuple", False)
    )


def _is_tensor(node: Any) -> bool:
    return (
        isinstance(node, fx.Node)
        and (node.op in {"placeholder", "get_attr"} or bool(shape_of(node)) or "is_float" in node.meta)
        and not _is_symbol(node)
    )


def _is_symbol(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if value is not None:
        return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))
    return (
        node.op == "call_function"
        and not node.meta.get("is_float", False)
        and shape_of(node) == ()
        and node.target is not operator.getitem
    )
