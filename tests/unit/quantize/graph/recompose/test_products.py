"""Matrix products of a decomposed graph: as the model wrote them; values stay (the fixture compares)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten, tensor_arg
from mixport.quantize.graph.recompose.operators import rename_operators
from mixport.quantize.graph.recompose.products import recompose_products
from mixport.quantize.graph.rewrites.constants import fold_constants
from tests.unit.quantize.conftest import operators
from tests.unit.quantize.graph.recompose.conftest import Rewritten

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A body of tokens [N, 16, 6], with layers and tensors for it."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.proj = body, nn.Linear(12, 6)
        self.qkv = nn.Linear(6, 18)
        generator = torch.Generator().manual_seed(3)
        self.wide, self.table = (nn.Buffer(torch.randn(16, n, generator=generator)) for n in (4, 16))
        self.right = nn.Buffer(torch.randn(6, 4, generator=generator))
        self.bias, self.one = (nn.Buffer(torch.randn(n, generator=generator)) for n in (4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.proj(x.reshape(-1, 16, 12)))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k, v: [N, 2, 16, 3]."""
        return self.qkv(x).reshape(-1, 16, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)


def attention(net: Net, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*net.heads(x))


def causal(net: Net, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*net.heads(x), is_causal=True)


def by_hand(net: Net, x: Tensor) -> Tensor:
    q, k, v = net.heads(x)
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


REWRITES = (rename_operators, recompose_products)


@pytest.mark.parametrize("body", [attention, causal, by_hand])
def test_attention_is_two_products_and_one_factor(rewritten: Rewritten, body: Body) -> None:
    graph = rewritten(Net(body), *REWRITES)
    found = operators(graph)
    assert (found["matmul"], found["softmax"], found["mul"]) == (2, 1, 1)
    assert found["bmm"] == found["expand"] == 0
    # Without the guard that gives 0 where a mask hides a whole row.
    assert found["logical_not"] == found["any"] == found["full_like"] == 0
    scores = next(node for node in graph.graph.nodes if str(node.target).startswith("aten.mul"))
    assert scores.args[1] == pytest.approx(0.5 if body is by_hand else 3**-0.5, rel=1e-12)
    assert tensor_arg(scores, 0).target is aten.matmul.default


def other_reader(net: Net, x: Tensor) -> Tensor:
    q, k, _ = net.heads(x)
    scaled = q * 2.0
    return scaled @ (k * 3.0).transpose(-2, -1) + scaled.sum(-1, keepdim=True)


def one_factor(net: Net, x: Tensor) -> Tensor:
    q, k, _ = net.heads(x)
    return (q * 2.0) @ k.transpose(-2, -1)


@pytest.mark.parametrize(("body", "factors"), [(other_reader, 2), (one_factor, 1)])
def test_factors_stay_where_one_alone_could_move(rewritten: Rewritten, body: Body, factors: int) -> None:
    graph = rewritten(Net(body), *REWRITES)
    (product,) = (node for node in graph.graph.nodes if node.target is aten.matmul.default)
    assert not any(str(user.target).startswith("aten.mul") for user in product.users)
    assert operators(graph)["mul"] == factors


LINEAR: dict[str, tuple[Body, int]] = {
    "with bias": (lambda net, x: torch.addmm(net.bias, x.flatten(0, 1), net.right), 1),
    "one bias for all": (lambda net, x: torch.addmm(net.bias[:1], x.flatten(0, 1), net.right), 1),
    "without bias": (lambda net, x: x @ net.right, 0),
    "on two axes": (lambda net, x: x.flatten(0, 1) @ net.right, 0),
    "bias added behind": (lambda net, x: x.flatten(0, 1) @ net.right + net.bias, 1),
    "bias with a factor": (lambda net, x: torch.add(x.flatten(0, 1) @ net.right, net.bias, alpha=2), 0),
    "bias of each token": (lambda net, x: x[0] @ net.right + net.wide, 0),
    "one value added": (lambda net, x: x.flatten(0, 1) @ net.right + net.one, 0),
}


@pytest.mark.parametrize(("body", "biases"), LINEAR.values(), ids=LINEAR.keys())
def test_a_product_with_a_constant_is_a_linear_layer(rewritten: Rewritten, body: Body, biases: int) -> None:
    graph = rewritten(Net(body), fold_constants, *REWRITES)
    # The layer that gives the tokens, and this one.
    _, layer = (node for node in graph.graph.nodes if node.target is aten.linear.default)
    assert sum(bias is not None for bias in layer.args[2:]) == biases
    assert tensor_arg(layer, 1).meta["shape"] == (4, 6)


@pytest.mark.parametrize("options", [{"alpha": 2}, {"beta": 0.5}])
def test_a_product_with_a_factor_is_no_linear_layer(rewritten: Rewritten, options: dict[str, float]) -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        return torch.addmm(net.bias, x.flatten(0, 1), net.right, **options)

    found = operators(rewritten(Net(body), fold_constants, *REWRITES))
    assert (found["linear"], found["addmm"]) == (1, 1)


def test_a_bias_whose_product_others_read_is_added(rewritten: Rewritten) -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        y = x.flatten(0, 1) @ net.right
        return torch.cat([y + net.bias, y], -1)

    found = operators(rewritten(Net(body), fold_constants, *REWRITES))
    assert (found["linear"], found["add"]) == (2, 1)


def test_a_constant_for_every_image_is_multiplied_once(rewritten: Rewritten) -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        return net.table @ x

    graph = rewritten(Net(body), *REWRITES)
    (product,) = (node for node in graph.graph.nodes if node.target is aten.matmul.default)
    assert operators(graph)["expand"] == operators(graph)["bmm"] == 0
    assert tensor_arg(product, 0).meta["shape"] == (16, 16)


def test_products_of_whole_batches_stay_as_they_are(rewritten: Rewritten) -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        return torch.bmm(x, x.transpose(1, 2)).flatten(1)

    found = operators(rewritten(Net(body), *REWRITES))
    assert (found["bmm"], found["matmul"]) == (1, 0)
