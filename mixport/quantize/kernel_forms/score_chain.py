"""Scores in front of a softmax as one unscaled sum times one constant: factors move past offsets, into the
exponent.

    (q @ k a + b) c + m  =  (q @ k + b / a + m / (a c)) a c

Exact in real arithmetic. A factor costs nothing there, where it is a pass over all scores on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    aten,
    call,
    constant,
    only_user,
    shape_of,
    tensor_arg,
)
from mixport.quantize.graph.roles import Kind
from mixport.quantize.sites.code_flow import CodeFlow

_KEEP_ROWS = {aten.reshape.default, aten.expand.default, aten.unsqueeze.default}
"""Movement that keeps rows as they are where it keeps the length of the last axis."""
_SOURCES = {Kind.PRODUCT, Kind.LAYER, Kind.FLOAT}
"""What scores may come from: their codes are their own, and nothing else is asked of them."""


@dataclass(frozen=True, kw_only=True)
class ScoreChain:
    """What a softmax reads, looked at backwards.

    Attributes:
        base: what the scores come from.
        steps: from there to the softmax: offsets, masks, factors, movement of whole rows.
    """

    base: fx.Node
    steps: tuple[fx.Node, ...]


def score_chain(graph: fx.GraphModule, flow: CodeFlow, softmax: fx.Node) -> ScoreChain | str:
    """The chain, or why its scores cannot have 8-bit codes of their own."""
    length, node = shape_of(softmax)[-1], tensor_arg(softmax, 0)
    steps: list[fx.Node] = []
    while only_user(node) is not None and _is_step(graph, node, length):
        steps.append(node)
        node = tensor_arg(node, 0)
    kind = flow.kinds[node]
    if only_user(node) is None:
        return "its scores are read by others, too"
    if kind is Kind.MOVE:
        return "its scores are moved from one row to another"
    if kind not in _SOURCES or shape_of(node)[-1:] != (length,):
        return f"its scores come from an operator of kind {kind.value}, which shares its codes with others"
    return ScoreChain(base=node, steps=tuple(reversed(steps)))


def unscaled(graph: fx.GraphModule, chain: ScoreChain, *, before: fx.Node) -> tuple[fx.Node, float]:
    """Scores without their factors, made of new nodes, and the product of these."""
    factor = 1.0
    node = chain.base
    for step in chain.steps:
        if (scale := _factor(step)) is not None:
            factor *= scale
        elif keeps_rows(step, shape_of(step)[-1]):
            node = call(graph, step.target, node, *step.args[1:], before=before, like=step)
        elif step.target is aten.masked_fill.Scalar:
            node = call(
                graph,
                step.target,
                node,
                step.args[1],
                _number(step.args[2]) / factor,
                before=before,
                like=step,
            )
        else:
            values = _offset(graph, step)
            assert values is not None
            shared = (
                step.args[1]
                if factor == 1.0
                else add_constant(graph, values / factor, name=f"{step.name}_offset", before=before)
            )
            node = call(graph, step.target, node, shared, before=before, like=step)
    return node, factor


def keeps_rows(node: fx.Node, length: int) -> bool:
    """True for movement behind which rows, the last axis, are as long as before and hold the same values."""
    return (
        node.target in _KEEP_ROWS and shape_of(node)[-1:] == (length,) == shape_of(tensor_arg(node, 0))[-1:]
    )


def _is_step(graph: fx.GraphModule, node: fx.Node, length: int) -> bool:
    if node.target is aten.masked_fill.Scalar:
        return len(node.args) == 3 and isinstance(node.args[2], (int, float))
    return _factor(node) is not None or _offset(graph, node) is not None or keeps_rows(node, length)


def _factor(node: fx.Node) -> float | None:
    """Of a multiplication or division by a positive constant, else None."""
    value = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        return None
    if node.target in {aten.mul.Tensor, aten.mul.Scalar}:
        return float(value)
    return 1.0 / float(value) if node.target in {aten.div.Tensor, aten.div.Scalar} else None


def _offset(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """Float constant that an addition adds to its first operand without spreading it."""
    if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return None
    values = constant(graph, node.args[1])
    fits = (
        values is not None and values.is_floating_point() and shape_of(node) == shape_of(tensor_arg(node, 0))
    )
    return values if fits else None


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)
