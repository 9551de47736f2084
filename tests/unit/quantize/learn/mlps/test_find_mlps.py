from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixport.quantize.graph.capture import Captured, capture
from mixport.quantize.learn.mlps.find import find_mlps, put_relu, read_values
from mixport.quantize.learn.mlps.prefix import Prefix, cut
from mixport.quantize.learn.mlps.train import gelu_output, relu_output
from tests.reconstruction import mlps, seeded

_CPU = torch.device("cpu")


def graph_of(module: nn.Module) -> Captured:
    return capture(module.requires_grad_(False), input_shape=(1, 3, 16, 16), dynamic_batch=True)


class Parts(nn.Module):
    """An MLP on pixels, in a way that a test says."""

    def __init__(self, rule: Callable[[Parts, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2, self.head = (
            nn.LayerNorm(3),
            nn.Linear(3, 6),
            nn.Linear(6, 3),
            nn.Linear(3, 5),
        )
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rule(self, x.permute(0, 2, 3, 1)).mean((1, 2)))


def test_both_kinds_of_gelu_are_found_with_the_normalisation_in_front() -> None:
    found = find_mlps(graph_of(mlps()).graph)
    assert [mlp.name for mlp in found] == ["blocks.0", "blocks.1"]
    assert [mlp.approximate for mlp in found] == ["none", "tanh"]
    assert found[0].layers == ("blocks.0.norm", "blocks.0.fc1", "blocks.0.fc2")
    assert found[0].epsilon == 1e-5


@pytest.mark.parametrize(
    ("rule", "layers"),
    [
        (lambda m, x: m.fc2(F.gelu(m.fc1(m.norm(x)))), ("norm", "fc1", "fc2")),
        (lambda m, x: m.fc2(F.gelu(m.fc1(x))), ("fc1", "fc2")),
        (lambda m, x: (y := m.norm(x)) + m.fc2(F.gelu(m.fc1(y))), ("fc1", "fc2")),
        (lambda m, x: m.fc2(F.dropout(F.gelu(m.fc1(x)), training=False)), ("fc1", "fc2")),
        (
            lambda m, x: m.fc2(F.gelu(m.fc1(x)).reshape(-1, 8, 2, 16, 6)).reshape(-1, 16, 16, 3),
            ("fc1", "fc2"),
        ),
    ],
    ids=["norm", "no norm", "norm read by the shortcut too", "dropout", "reshaped between"],
)
def test_what_belongs_to_an_mlp(rule: Callable[[Parts, Tensor], Tensor], layers: tuple[str, ...]) -> None:
    (found,) = find_mlps(graph_of(seeded(lambda: Parts(rule))).graph)
    assert found.layers == layers


@pytest.mark.parametrize(
    "rule",
    [
        lambda m, x: m.fc2(y := F.gelu(m.fc1(x))) + y.mean(3, keepdim=True),
        lambda m, x: m.fc2(F.gelu(y := m.fc1(x))) + y.mean(3, keepdim=True),
        lambda m, x: m.fc2(F.gelu(m.fc1(x)) * 2.0),
        lambda m, x: m.fc2(F.gelu(m.fc1(x)).reshape(-1, 16, 6, 16).transpose(2, 3)),
        lambda m, x: m.fc2(F.relu(m.fc1(x))),
        lambda m, x: m.fc2(m.fc1(F.gelu(x))),
    ],
    ids=["gelu shared", "gelu's input shared", "scaled between", "last axis cut", "relu", "no layer before"],
)
def test_what_is_no_mlp(rule: Callable[[Parts, Tensor], Tensor]) -> None:
    assert find_mlps(graph_of(seeded(lambda: Parts(rule))).graph) == ()


def test_the_values_compute_what_the_graph_computes() -> None:
    captured = graph_of(mlps())
    graph, x = captured.graph, torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for mlp in find_mlps(graph):
        value, wanted = (Prefix(cut(graph, node), device=_CPU)(x) for node in (mlp.input, mlp.second))
        got = gelu_output(mlp, read_values(graph, mlp), value.reshape(-1, value.shape[-1]))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_relu_and_new_constants_take_their_places_and_old_ones_stay() -> None:
    module = mlps()
    graph = graph_of(module).graph
    first, second = find_mlps(graph)
    old = {name: value.clone() for name, value in module.state_dict().items()}
    values = {name: value * 1.5 + 0.25 for name, value in read_values(graph, first).items()}
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    before, wanted = cut(graph, first.second), Prefix(cut(graph, first.second), device=_CPU)(x)
    put_relu(graph, first, values)
    assert torch.equal(Prefix(before, device=_CPU)(x), wanted), "what was cut off stays as it was"
    assert [mlp.name for mlp in find_mlps(graph)] == [second.name]
    value = Prefix(cut(graph, first.input), device=_CPU)(x)
    got = Prefix(cut(graph, first.second), device=_CPU)(x)
    torch.testing.assert_close(
        got, relu_output(first, values, value.reshape(-1, value.shape[-1])), rtol=1e-5, atol=1e-6
    )
    assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
