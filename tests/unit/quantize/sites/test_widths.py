"""Widths of layers: decided on the float graph, named once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixport.quantize.sites.planner import make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.choices.scheme import Scheme
from tests.unit.quantize.conftest import Capture


class Shared(nn.Module):
    """One module called twice, and a depthwise convolution with one weight a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Conv2d(4, 4, 1, groups=4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.scale(x)).mean((2, 3)))


def test_every_layer_has_one_width_a_name_of_its_own_and_a_reason(captured: Capture) -> None:
    graph, scheme = captured(Shared()).graph, Scheme(weight_bits=3, activation_bits=8, edge_bits=6)
    widths = scheme_widths(graph, make_plan(graph, scheme, stream_bits=16), scheme)
    assert [(one.name, one.bits, one.fixed) for one in widths.values()] == [
        ("stem", 6, True),
        ("twice", 3, False),
        ("twice_2", 3, False),
        ("scale", 8, True),
        ("head", 6, True),
    ]
    assert [node for node in graph.graph.nodes if node in widths] == list(widths)
    assert {one.reason for one in widths.values() if not one.fixed} == {"w3a8"}
