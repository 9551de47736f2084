"""Factors of queries and keys move behind the attention product; no other product loses one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten, only_user
from tests.unit.quantize.conftest import Capture, operators

Body = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """q, k and v of 12 channels from an image, 2 heads of 6."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.qkv, self.body = nn.Conv2d(3, 36, 8, stride=8), body
        self.bias = nn.Buffer(torch.linspace(-1, 1, 16).reshape(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).reshape(-1, 3, 2, 6, 4).transpose(-1, -2).unbind(1)
        return self.body(q, k, v).flatten(1) + self.bias.flatten()[:1]


def scaled_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * 0.25) @ k.transpose(-1, -2)).softmax(-1) @ v


def scaled_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k * 0.25).transpose(-1, -2)).softmax(-1) @ v


def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q / 2.0) @ (k * 0.5).transpose(-1, -2) + 1.0).softmax(-1) @ v


@pytest.mark.parametrize("body", [scaled_query, scaled_key, both])
def test_factors_of_queries_and_keys_move_behind_their_product(captured: Capture, body: Body) -> None:
    """`captured` compares with the module itself."""
    result = captured(Attention(body))
    products = [node for node in result.graph.graph.nodes if node.target is aten.matmul.default]
    behind = only_user(products[0])
    assert behind is not None and behind.target is aten.mul.Tensor and behind.args[1] == 0.25
    assert operators(result.graph)["mul"] == 1 and operators(result.graph)["div"] == 0


def scaled_value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ (v * 0.25)


def read_by_others(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scaled = q * 0.25
    return (scaled @ k.transpose(-1, -2)).softmax(-1) @ v + scaled


def read_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * 0.25) @ k.transpose(-1, -2)
    return torch.cat([scores.softmax(-1) @ v, scores], -1)


@pytest.mark.parametrize("body", [scaled_value, read_by_others, read_scores])
def test_other_factors_stay_where_they_are(captured: Capture, body: Body) -> None:
    result = captured(Attention(body))
    for product in (node for node in result.graph.graph.nodes if node.target is aten.matmul.default):
        assert all(user.target is not aten.mul.Tensor for user in product.users)
    assert operators(result.graph)["mul"] == 1
