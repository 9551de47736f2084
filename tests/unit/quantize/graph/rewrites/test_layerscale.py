"""Constant factors of channels go into the layer before them; values stay (the fixture compares)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten, constant
from tests.unit.quantize.conftest import Capture, operators

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers of 5 channels, and factors for them: of both signs, one of them 0."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.conv, self.up = nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 3)
        self.fc, self.plain = nn.Linear(5, 5), nn.Conv2d(3, 5, 3, bias=False)
        self.gamma = nn.Parameter(torch.tensor([0.1, -2.0, 3.0, 0.0, 1.0]))
        self.side = nn.Parameter(torch.linspace(0.5, 2, 14))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def image(gamma: Tensor) -> Tensor:
    return gamma.reshape(1, -1, 1, 1)


FOLDED: dict[str, Body] = {
    "convolution": lambda net, x: net.conv(x) * image(net.gamma),
    "convolution without bias": lambda net, x: net.plain(x) * image(net.gamma),
    "factor on the left": lambda net, x: image(net.gamma) * net.conv(x),
    "factor of three axes": lambda net, x: net.conv(x) * net.gamma.reshape(-1, 1, 1),
    "linear": lambda net, x: net.fc(net.conv(x).mean((2, 3))) * net.gamma,
    "linear on channels last": lambda net, x: net.fc(net.conv(x).permute(0, 2, 3, 1)) * net.gamma,
    "behind a permute": lambda net, x: net.conv(x).permute(0, 2, 3, 1) * net.gamma,
    "behind two": lambda net, x: (
        net.conv(x).permute(2, 3, 1, 0).permute(1, 2, 0, 3) * net.gamma[:, None, None]
    ),
    "two factors": lambda net, x: net.conv(x) * image(net.gamma) * image(net.gamma + 1),
    "transposed convolution": lambda net, x: net.up(x) * image(net.gamma),
}


@pytest.mark.parametrize("body", FOLDED.values(), ids=FOLDED.keys())
def test_a_factor_goes_into_the_layer_before_it(captured: Capture, body: Body) -> None:
    result = captured(Net(body))
    assert operators(result.graph)["mul"] == 0
    assert not any("depthwise" in decision.what for decision in result.decisions)


def test_weights_and_bias_are_multiplied_in_double_precision(captured: Capture) -> None:
    net = Net(FOLDED["convolution"])
    graph = captured(net).graph
    (layer,) = (node for node in graph.graph.nodes if node.target is aten.conv2d.default)
    weight, bias = (constant(graph, layer.args[place]) for place in (1, 2))
    gain = net.gamma.double()
    assert weight is not None and bias is not None
    assert torch.equal(weight, (net.conv.weight.double() * gain.view(-1, 1, 1, 1)).float())
    assert torch.equal(bias, (net.conv.bias.double() * gain).float())


def test_a_layer_without_a_bias_gets_none(captured: Capture) -> None:
    graph = captured(Net(FOLDED["convolution without bias"])).graph
    (layer,) = (node for node in graph.graph.nodes if node.target is aten.conv2d.default)
    assert layer.args[2] is None


def behind_relu(net: Net, x: Tensor) -> Tensor:
    return net.conv(x).relu() * image(net.gamma)


def read_twice(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    return torch.cat([y * image(net.gamma), y], 1)


@pytest.mark.parametrize("body", [behind_relu, read_twice])
def test_a_factor_that_no_layer_can_take_is_a_depthwise_convolution_and_says_so(
    captured: Capture, body: Body
) -> None:
    result = captured(Net(body))
    assert (operators(result.graph)["mul"], operators(result.graph)["conv2d"]) == (0, 2)
    layer = [node for node in result.graph.graph.nodes if node.target is aten.conv2d.default][-1]
    assert layer.args[6] == 5
    (decision,) = result.decisions
    assert decision.what == "factor as a 1x1 depthwise convolution"
    assert decision.why == "no layer directly before it could take it"


KEPT: dict[str, Body] = {
    "of rows": lambda net, x: net.conv(x) * net.side[:, None],
    "of columns": lambda net, x: net.conv(x) * net.side,
    "of rows and columns": lambda net, x: net.conv(x) * (net.side[:, None] + net.side),
    "one number": lambda net, x: net.conv(x) * net.gamma[1],
    "of an image": lambda net, x: net.conv(x) * net.conv(x).mean((2, 3), keepdim=True),
    "tokens, not their channels": lambda net, x: (
        net.fc(net.conv(x)[:, :, 0, :5].transpose(1, 2)) * net.gamma[:, None]
    ),
    "behind a relu, on tokens": lambda net, x: net.conv(x).flatten(2).transpose(1, 2).relu() * net.gamma,
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT.keys())
def test_other_factors_stay(captured: Capture, body: Body) -> None:
    result = captured(Net(body))
    assert operators(result.graph)["mul"] == 1
    assert not any("depthwise" in decision.what for decision in result.decisions)
