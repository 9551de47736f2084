"""A convolution as classifier, as the linear layer that it is: the outputs stay float, as those of any
classifier do.

ONNX Runtime has an integer convolution with integer results only: its outputs would be codes, in the range
that calibration images reach, and cut beyond it. An integer Gemm gives floats. A convolution whose kernel
covers all that it reads, such as one of 1x1 on pooled features, is a linear layer exactly. Outputs of others
stay codes, with a margin (`ranges.OUTPUT_MARGIN`).
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    constant,
    module_path,
    only_user,
    shape_of,
    tensor_arg,
)
from mixport.records.decision import Decision

_MOVES = frozenset(
    {
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.select.int,
        aten.permute.default,
        aten.transpose.int,
    }
)
_OUTPUT_RANK = 2


def linear_classifiers(graph: fx.GraphModule) -> list[Decision]:
    """Rewrite the convolutions of one place that nothing but the output [N, classes] reads; one decision
    each.
    """
    decisions: list[Decision] = []
    image = next((node for node in graph.graph.nodes if node.op == "placeholder"), None)
    if image is None or shape_of(image)[2:] == (1, 1):
        return decisions  # every convolution of such a model is a linear layer: it keeps the form that it has
    for node in list(graph.graph.nodes):
        if node.target is not aten.conv2d.default or not shape_of(node) or not shape_of(tensor_arg(node, 0)):
            continue
        made = _linear(graph, node) if _is_output(node) else None
        if made is None:
            continue
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
        decisions.append(
            Decision(
                where=module_path(made) or made.name,
                what="convolution as a linear layer",
                why=(
                    "its result is the output, which an integer Gemm gives in float, and an integer "
                    "convolution as codes"
                ),
            )
        )
    return decisions


def _is_output(node: fx.Node) -> bool:
    """True where only data movement lies between a node and the output [N, classes]."""
    user = only_user(node)
    while user is not None and user.target in _MOVES:
        node, user = user, only_user(user)
    return user is not None and user.op == "output" and len(shape_of(node)) == _OUTPUT_RANK


def _linear(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x, weight, bias, _, padding, dilation, groups = arguments(node, None, [1, 1], [0, 0], [1, 1], 1, after=2)
    values = constant(graph, weight)
    if values is None or groups != 1 or any(padding):
        return None
    outputs, channels, *kernel = values.shape
    if list(shape_of(x)[2:]) != kernel or any(step != 1 for step in dilation):
        return None

    def emit(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, *args, before=node, like=node)

    flat = add_constant(
        graph,
        values.reshape(outputs, -1).contiguous(),
        name=f"{module_path(node) or node.name}_weight",
        before=node,
    )
    features = emit(aten.reshape.default, x, [-1, channels * math.prod(kernel)])
    return emit(aten.reshape.default, emit(aten.linear.default, features, flat, bias), [-1, outputs, 1, 1])
