from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mixport.quantize.algorithms.activations import choose_params
from mixport.quantize.channels.factors import FIXED, Factors, find_factors
from mixport.quantize.channels.uneven import level_uneven
from mixport.quantize.graph.capture import Captured
from mixport.quantize.prepare import scale_rule
from mixport.quantize.scales.histograms import collect
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.quantize.sites.planner import make_plan
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target

Capture = Callable[..., Captured]
W8A8 = Scheme(weight_bits=8, activation_bits=8)


class Net(nn.Module):
    """Layers of 8 channels by number, seeded, and a body that puts them together."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.stem, self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 3, padding=1),
            *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)),
        )
        self.wide, self.deep, self.fc = (
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Linear(8, 4),
        )
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(
                    torch.randn(value.shape, generator=generator)
                    * (0.1 if value.dim() == 1 else (2.0 / value[0].numel()) ** 0.5)
                )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


SPREAD = torch.logspace(0, 3, 8)


def uneven(net: Net, *, gives: str, reads: str) -> Net:
    """The same function with channels of one layer spread over three decades, undone in the next."""
    first, second = getattr(net, gives), getattr(net, reads)
    with torch.no_grad():
        first.weight *= SPREAD.view(-1, 1, 1, 1)
        first.bias *= SPREAD
        inputs = (
            SPREAD
            if second.weight.shape[1] == 8
            else torch.cat([SPREAD, torch.ones(second.weight.shape[1] - 8)])
        )
        second.weight /= inputs.view(1, -1, *[1] * (second.weight.dim() - 2))
    return net


def chained(net: Net, x: Tensor) -> Tensor:
    return net.fc(F.relu(net.b(F.relu(net.a(F.relu(net.stem(x)))))).mean((2, 3)))


def pooled(net: Net, x: Tensor) -> Tensor:
    return net.fc(F.max_pool2d(F.relu(net.a(F.relu(net.stem(x)))), 2).mean((2, 3)))


def added(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.a(F.relu(net.stem(x))))
    return net.fc(F.relu(net.c(F.relu(y + F.relu(net.b(y))))).mean((2, 3)))


def joined(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.stem(x))
    return net.fc(F.relu(net.wide(torch.cat([F.relu(net.a(y)), torch.sigmoid(net.b(y))], 1))).mean((2, 3)))


def images() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def coded(graph: fx.GraphModule, x: Tensor) -> float:
    """SQNR of a graph with its activations rounded to 8-bit codes, weights in float."""
    with torch.no_grad():
        wanted = graph(x)
        plan = make_plan(graph, W8A8, stream_bits=16)
        names = {site.tensor: site.name for site in plan.sites}
        *_, (_, observers) = collect(graph, names, [x])
        params = choose_params(
            plan,
            {site.name: observers[site.tensor].result() for site in plan.sites},
            scale_rule(load_target("ort-cpu")),
        )

        class Coded(fx.Interpreter):
            def run_node(self, n: fx.Node) -> object:
                value = super().run_node(n)
                for site in plan.sites:
                    if site.tensor is n and site.base is None:
                        p = params[site.name]
                        step = torch.tensor(p.scale)
                        value = (
                            torch.clamp(
                                torch.round(value / step), p.qmin - p.zero_point, p.qmax - p.zero_point
                            )
                            * step
                        )
                return value

        got = Coded(graph).run(x)
    return 10 * float(torch.log10((wanted - wanted.mean(0)).square().sum() / (wanted - got).square().sum()))


def factors(captured: Captured) -> tuple[Factors, dict[str, fx.Node]]:
    return find_factors(captured.graph, CodeFlow(captured.graph)), {
        node.name: node for node in captured.graph.graph.nodes
    }


@pytest.mark.parametrize(
    ("body", "gives", "reads"),
    [(chained, "a", "b"), (pooled, "a", "fc"), (added, "a", "b"), (joined, "a", "wide")],
)
def test_uneven_channels_are_levelled_and_the_outputs_stay_bit_for_bit(
    captured: Capture, body: Callable[[Net, Tensor], Tensor], gives: str, reads: str
) -> None:
    net = uneven(Net(body), gives=gives, reads=reads)
    if body is added:  # both operands of the sum, and what reads it
        with torch.no_grad():
            net.b.weight *= SPREAD.view(-1, 1, 1, 1)
            net.b.bias *= SPREAD
            net.c.weight /= SPREAD.view(1, -1, 1, 1)
    graph, x = captured(net, size=8).graph, images()
    with torch.no_grad():
        wanted = graph(x)
    before = coded(graph, x)
    (decision,) = level_uneven(graph, [x])
    with torch.no_grad():
        assert torch.equal(graph(x), wanted)
    assert before < 20.0
    assert coded(graph, x) > 25.0
    assert reads in decision.what


def test_a_branch_is_levelled_through_its_table(captured: Capture) -> None:
    """A sigmoid beside a stream a thousand times as wide: its table gives what it gives times a power of
    two.
    """
    net = Net(joined)
    with torch.no_grad():
        net.a.weight *= 1000.0
        net.a.bias *= 1000.0
        net.wide.weight[:, :8] /= 1000.0
    graph, x = captured(net, size=8).graph, images()
    with torch.no_grad():
        wanted = graph(x)
    assert len(level_uneven(graph, [x])) == 1
    with torch.no_grad():
        assert torch.equal(graph(x), wanted)
    assert coded(graph, x) > 25.0


def test_one_huge_bias_is_levelled(captured: Capture) -> None:
    net = Net(chained)
    with torch.no_grad():
        net.a.bias[3] = 1000.0
        net.b.weight[:, 3] /= 1000.0
    graph, x = captured(net, size=8).graph, images()
    before = coded(graph, x)
    assert len(level_uneven(graph, [x])) == 1
    assert before < 20.0
    assert coded(graph, x) > 25.0


@pytest.mark.parametrize("body", [chained, pooled, added, joined])
def test_even_channels_keep_every_weight(captured: Capture, body: Callable[[Net, Tensor], Tensor]) -> None:
    graph = captured(Net(body), size=8).graph
    arguments = {node: node.args for node in graph.graph.nodes}
    assert level_uneven(graph, [images()]) == []
    assert {node: node.args for node in graph.graph.nodes} == arguments


def test_a_silent_channel_does_not_keep_its_weights_beside_levelled_ones(captured: Capture) -> None:
    """Left at their size, the weights that read it would take the codes of all others."""
    net = uneven(Net(chained), gives="a", reads="b")
    with torch.no_grad():
        net.a.bias[0] = -100.0
    graph, x = captured(net, size=8).graph, images()
    level_uneven(graph, [x])
    layer = [node for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default][2]
    columns = getattr(graph, str(layer.args[1].target)).abs().amax((0, 2, 3))
    assert columns[0] < 8 * columns[1:].max()


def test_adds_share_factors_and_products_and_outputs_have_none(captured: Capture) -> None:
    found, node = factors(captured(Net(added), size=8))
    assert np.array_equal(found.gives[node["conv2d_1"]], found.gives[node["conv2d_2"]])
    assert np.array_equal(found.reads[node["conv2d_3"]], found.gives[node["conv2d_1"]])
    assert len(set(found.gives[node["conv2d"]])) == 8
    assert set(found.gives[node["linear"]]) == {FIXED}
    assert set(found.reads[node["conv2d"]]) == {FIXED}


def test_channels_of_a_concat_keep_their_own_and_a_table_has_one(captured: Capture) -> None:
    found, node = factors(captured(Net(joined), size=8))
    reads = found.reads[node["conv2d_3"]]
    assert np.array_equal(reads[:8], found.gives[node["conv2d_1"]])
    assert len(set(reads[:8])) == 8
    assert set(reads[8:]) == {found.tables[node["sigmoid"]]}
    assert set(found.gives[node["conv2d_2"]]) == {FIXED}, "a sigmoid does not let factors pass"


def test_places_that_a_layer_reads_as_features_share_the_factor_of_their_channel(captured: Capture) -> None:
    class Flat(Net):
        def __init__(self) -> None:
            super().__init__(chained)
            self.fc = nn.Linear(8 * 4 * 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.pad(F.relu(self.stem(x)), (-2, -2, -2, -2)).flatten(1))

    found, node = factors(captured(Flat(), size=8))
    assert np.array_equal(found.reads[node["linear"]], np.repeat(found.gives[node["conv2d"]], 16))


def test_a_gate_keeps_its_scale_and_what_it_gates_may_change(captured: Capture) -> None:
    def gated(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.a(F.relu(net.stem(x))))
        return net.fc(F.relu(net.c(y * torch.sigmoid(net.b(y.mean((2, 3), keepdim=True)))).mean((2, 3))))

    found, node = factors(captured(Net(gated), size=8))
    assert np.array_equal(found.reads[node["conv2d_3"]], found.gives[node["conv2d_1"]])
    assert FIXED not in found.gives[node["conv2d_1"]]
    assert set(found.tables.values()) == {FIXED}
