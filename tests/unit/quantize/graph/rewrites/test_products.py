"""Attention as two products and linear layers on two axes; values stay (the fixture compares)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten, constant, shape_of, tensor_arg
from tests.unit.quantize.conftest import Capture, operators

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Body = Callable[["Net", Tensor], Tensor]
SEEN = torch.ones(16, 16, dtype=torch.bool).tril(3)
BIAS = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))


class Attention(nn.Module):
    """`attend` gets q, k, v of [N, 2, 16, 4], from 4x4 patches."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.patch, self.qkv, self.attend = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), attend
        with torch.no_grad():
            self.qkv.weight.mul_(4)  # scores that differ, so that a wrong mask shows

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.attend(*self.qkv(tokens).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0))


def sdpa(**options: object) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def moving(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=k @ q.transpose(-2, -1))


def few_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, :5], k, v, is_causal=True)


#: How it is called, its factor, and which operators the mask takes.
WAYS: dict[str, tuple[Attend, float, dict[str, int]]] = {
    "plain": (sdpa(), 0.5, {}),
    "own factor": (sdpa(scale=0.125), 0.125, {}),
    "factor of one": (sdpa(scale=1.0), 1.0, {}),
    "causal": (sdpa(is_causal=True), 0.5, {"masked_fill": 1}),
    "causal, fewer queries": (few_queries, 0.5, {"masked_fill": 1}),
    "what may be seen": (sdpa(attn_mask=SEEN), 0.5, {"masked_fill": 1}),
    "what is added": (sdpa(attn_mask=BIAS), 0.5, {"add": 1}),
    "what an image adds": (moving, 0.5, {"add": 1}),
}


@pytest.mark.parametrize(("attend", "factor", "mask"), WAYS.values(), ids=WAYS.keys())
def test_attention_is_two_products_around_a_softmax(
    captured: Capture, attend: Attend, factor: float, mask: dict[str, int]
) -> None:
    graph = captured(Attention(attend)).graph
    found = operators(graph)
    assert found["scaled_dot_product_attention"] == 0 and found["softmax"] == 1
    assert found["matmul"] == (3 if attend is moving else 2)
    assert {name: found[name] for name in ("add", "masked_fill") if found[name]} == mask
    factors = [node.args[1] for node in graph.graph.nodes if node.target is aten.mul.Tensor]
    assert factors == ([factor] if factor != 1.0 else [])


def test_heads_that_share_keys_get_them_by_movement_alone(captured: Capture) -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(torch.cat([q, q + 1], 1), k, v, enable_gqa=True)

    found = operators(captured(Attention(grouped)).graph)
    assert (found["matmul"], found["expand"], found["softmax"]) == (2, 2, 1)


def test_heads_with_keys_of_their_own_need_no_movement(captured: Capture) -> None:
    found = operators(captured(Attention(sdpa(enable_gqa=True))).graph)
    assert (found["matmul"], found["expand"]) == (2, 0)


class Net(nn.Module):
    """A body of channels-last features [N, 4, 4, 6]."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.patch, self.body = nn.Conv2d(3, 6, 4, 4), body
        self.fc, self.plain = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        generator = torch.Generator().manual_seed(4)
        self.right, self.bias, self.one, self.each = (
            nn.Buffer(torch.randn(shape, generator=generator)) for shape in ((6, 5), (5,), (), (4, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.patch(x).permute(0, 2, 3, 1))


#: Body, reshapes around the layer.
LAYERS: dict[str, tuple[Body, int]] = {
    "four axes": (lambda net, x: net.fc(x), 2),
    "three axes": (lambda net, x: net.fc(x[:, 0]), 2),
    "two axes": (lambda net, x: net.fc(x[:, 0, 0]), 0),
    "without bias": (lambda net, x: net.plain(x), 2),
    "product": (lambda net, x: x @ net.right, 2),
    "addmm": (lambda net, x: torch.addmm(net.bias, x[:, 0, 0], net.right), 0),
    "addmm with one bias": (lambda net, x: torch.addmm(net.one, x[:, 0, 0], net.right), 0),
    "one behind the other": (lambda net, x: net.fc(F.relu(x @ net.right @ net.right.t())), 6),
}


@pytest.mark.parametrize(("body", "reshapes"), LAYERS.values(), ids=LAYERS.keys())
def test_linear_layers_read_two_axes(captured: Capture, body: Body, reshapes: int) -> None:
    graph = captured(Net(body)).graph
    layers = [node for node in graph.graph.nodes if node.target is aten.linear.default]
    assert len(layers) == (3 if reshapes == 6 else 1)
    assert all(len(shape_of(tensor_arg(layer, 0))) == len(shape_of(layer)) == 2 for layer in layers)
    assert operators(graph)["reshape"] == reshapes
    assert operators(graph)["matmul"] == operators(graph)["addmm"] == 0


def test_a_right_operand_is_turned_into_weights(captured: Capture) -> None:
    net = Net(LAYERS["addmm with one bias"][0])
    graph = captured(net).graph
    (layer,) = (node for node in graph.graph.nodes if node.target is aten.linear.default)
    weight, bias = (constant(graph, layer.args[place]) for place in (1, 2))
    assert weight is not None and bias is not None
    assert torch.equal(weight, net.right.t()) and weight.is_contiguous()
    assert bias.tolist() == [float(net.one)] * 5


KEPT: dict[str, tuple[Body, str]] = {
    "left operand": (lambda net, x: net.right.t() @ x.transpose(-2, -1), "matmul"),
    "bias of each row": (lambda net, x: torch.addmm(net.each, x[0, 0], net.right), "addmm"),
    "bias with a factor": (lambda net, x: torch.addmm(net.bias, x[:, 0, 0], net.right, beta=2), "addmm"),
    "bias of an image": (lambda net, x: torch.addmm(x[:, 0, 1, :5], x[:, 0, 0], net.right), "addmm"),
}


@pytest.mark.parametrize(("body", "operator"), KEPT.values(), ids=KEPT.keys())
def test_other_products_stay(captured: Capture, body: Body, operator: str) -> None:
    found = operators(captured(Net(body)).graph)
    assert (found[operator], found["linear"]) == (1, 0)
