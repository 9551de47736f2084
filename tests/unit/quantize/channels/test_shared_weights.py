"""Layers whose weights are stored once: found by value, named in one decision for each weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.model.programs.fx_graph import module_path
from mixport.quantize.channels.shared_weights import layers_with_shared_weights
from mixport.records.decision import Decision
from tests.unit.quantize.conftest import Capture

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward, prepare: Callable[[Net], object] = lambda net: None) -> None:
        super().__init__()
        self.body = forward
        self.stem, self.a, self.b, self.c = nn.Conv2d(3, 8, 1), *(nn.Conv2d(8, 8, 3) for _ in range(3))
        self.deep, self.deeper = (nn.Conv2d(8, 8, 3, groups=8) for _ in range(2))
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
            prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def shared(captured: Capture, net: Net) -> tuple[list[str], list[Decision]]:
    """Modules of the layers found, in graph order, and what is said about them."""
    graph = captured(net).graph
    found, decisions = layers_with_shared_weights(graph)
    return [module_path(node) or node.name for node in graph.graph.nodes if node in found], decisions


def chain(*names: str) -> Forward:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for name in names:
            x = torch.relu(getattr(net, name)(x))
        return x

    return forward


def said(names: str, count: int) -> Decision:
    why = (
        f"{count} layers have these weights in common: changed for each of them, they would be stored "
        f"{count} times"
    )
    return Decision(where=names, what="weights take no ratios of channels", why=why)


def test_layers_with_weights_of_their_own_share_nothing(captured: Capture) -> None:
    assert shared(captured, Net(chain("a", "b", "c"))) == ([], [])


def test_a_module_that_is_called_three_times_is_named_once(captured: Capture) -> None:
    found, decisions = shared(captured, Net(chain("a", "b", "a", "a")))
    assert found == ["a", "a", "a"]
    assert decisions == [said("a", 3)]


def test_equal_tensors_under_two_names_are_one_weight(captured: Capture) -> None:
    net = Net(chain("a", "b", "c"), lambda net: net.c.weight.copy_(net.a.weight))
    assert shared(captured, net) == (["a", "c"], [said("a, c", 2)])


def test_each_weight_has_a_decision_of_its_own(captured: Capture) -> None:
    net = Net(
        lambda net, x: net.head(net.fc(chain("a", "b")(net, x).mean((2, 3)))),
        lambda net: (net.b.weight.copy_(net.a.weight), net.head.weight.copy_(net.fc.weight)),
    )
    found, decisions = shared(captured, net)
    assert found == ["a", "b", "fc", "head"]
    assert decisions == [said("a, b", 2), said("fc, head", 2)]


def change_last(net: Net) -> None:
    net.b.weight.copy_(net.a.weight)
    net.b.weight[-1, -1, -1, -1] += 1e-3


def test_weights_that_differ_in_their_last_value_are_not_shared(captured: Capture) -> None:
    assert shared(captured, Net(chain("a", "b"), change_last)) == ([], [])


def test_biases_do_not_count(captured: Capture) -> None:
    net = Net(chain("a", "b"), lambda net: net.b.bias.copy_(net.a.bias))
    assert shared(captured, net) == ([], [])


@pytest.mark.parametrize(
    ("body", "prepare"),
    [
        (chain("deep", "deeper"), lambda net: net.deeper.weight.copy_(net.deep.weight)),
        (chain("a", "b"), lambda net: (net.a.weight.zero_(), net.b.weight.zero_())),
        (lambda net, x: F.avg_pool2d(F.avg_pool2d(net.stem(x), 2), 2), lambda net: None),
    ],
    ids=["depthwise", "zeros", "average pools"],
)
def test_depthwise_kernels_and_zeros_are_left_out(
    captured: Capture, body: Forward, prepare: Callable[[Net], object]
) -> None:
    assert shared(captured, Net(body, prepare)) == ([], [])


def test_equal_bytes_in_another_shape_are_another_weight(captured: Capture) -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        y = F.conv2d(net.stem(x), net.fc.weight.reshape(8, 8, 1, 1))
        return net.fc(y.mean((2, 3)))

    assert shared(captured, Net(body)) == ([], [])
