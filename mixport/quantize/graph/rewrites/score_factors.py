"""Numbers that scale the operands of an attention product, moved behind it.

(q * s) @ k is (q @ k) * s. Before the product the multiplication is a function of codes, a table over all
queries with codes of its own; behind it, it is one more step on scores that the softmax takes as floats
anyway. `scaled_dot_product_attention` is written out alike.
"""

from __future__ import annotations

import torch
from torch import fx

from mixport.model.programs.fx_graph import aten, call, constant, only_user, tensor_arg
from mixport.records.decision import Decision

_PRODUCTS = {aten.matmul.default, aten.bmm.default}
_MOVES = {
    aten.transpose.int,
    aten.permute.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
}
_TO_SOFTMAX = {aten.add.Tensor, aten.mul.Tensor, aten.masked_fill.Scalar, *_MOVES}
"""What may lie between scores and their softmax: a mask, a bias of positions, another factor, movement."""


def move_factors_behind_scores(graph: fx.GraphModule) -> list[Decision]:
    """Multiplications and divisions by a number, of an operand of every product whose result goes to a
    softmax.
    """
    for product in list(graph.graph.nodes):
        if product.target not in _PRODUCTS or not _reaches_softmax(product):
            continue
        if any(constant(graph, tensor_arg(product, place)) is not None for place in (0, 1)):
            continue
        factor = 1.0
        for place in (0, 1):
            factor *= _take_factor(tensor_arg(product, place), reader=product)
        if factor == 1.0:
            continue
        readers = list(product.users)
        scaled = call(graph, aten.mul.Tensor, product, factor, before=product.next, like=product)
        for reader in readers:
            reader.replace_input_with(product, scaled)
    return []


def _reaches_softmax(node: fx.Node) -> bool:
    """Nothing but steps of a softmax's own reads the scores."""
    user = only_user(node)
    while user is not None and user.target in _TO_SOFTMAX:
        user = only_user(user)
    return user is not None and user.target is aten.softmax.int


def _take_factor(operand: fx.Node, *, reader: fx.Node) -> float:
    """The factor of an operand that nobody else reads, possibly behind movement; the operand loses it. 1
    where there is none.
    """
    while operand.target in _MOVES and only_user(operand) is reader:
        operand, reader = tensor_arg(operand, 0), operand
    factor = _factor_of(operand)
    if factor is None or only_user(operand) is not reader:
        return 1.0
    reader.replace_input_with(operand, tensor_arg(operand, 0))
    return factor


def _factor_of(node: fx.Node) -> float | None:
    """What a node multiplies its tensor by, None for any other node."""
    if node.target not in {aten.mul.Tensor, aten.div.Tensor} or node.kwargs or len(node.args) != 2:
        return None
    number = node.args[1]
    if (
        not isinstance(node.args[0], fx.Node)
        or isinstance(number, bool)
        or not isinstance(number, (int, float))
    ):
        return None
    if not torch.isfinite(torch.tensor(float(number))) or number == 0:
        return None
    return float(number) if node.target is aten.mul.Tensor else 1.0 / float(number)
