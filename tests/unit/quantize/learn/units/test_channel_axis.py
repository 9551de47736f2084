from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixport.quantize.graph.roles import classify
from mixport.quantize.learn.units.channel_axis import channel_axis
from tests.unit.quantize.conftest import Capture

Body = Callable[[nn.Module, Tensor], Tensor]


class Traced(nn.Module):
    """The image through a body that gives its tensor, and what becomes of it."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.patch, self.norm, self.layer, self.line = (
            nn.Conv2d(3, 8, 4, 4),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Conv1d(8, 8, 3),
        )
        self.wide = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def heads(m: nn.Module, x: Tensor) -> Tensor:
    return m.layer(m.patch(x).flatten(2).transpose(1, 2)).reshape(-1, 16, 2, 4).permute(0, 2, 1, 3)


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        (lambda m, x: torch.relu(m.patch(x)), 1),
        (lambda m, x: m.patch(x).permute(0, 2, 3, 1), 3),
        (lambda m, x: torch.relu(m.layer(m.patch(x).permute(0, 2, 3, 1))), 3),
        (lambda m, x: m.norm(m.patch(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
        (lambda m, x: m.patch(x).permute(0, 2, 3, 1) + m.layer(m.patch(x).permute(0, 2, 3, 1)), 3),
        (lambda m, x: torch.roll(m.layer(m.patch(x).permute(0, 2, 3, 1)), (1, 1), (1, 2)), 3),
        (lambda m, x: m.patch(x).flatten(2), 1),
        (lambda m, x: m.patch(x).flatten(2).transpose(1, 2), 2),
        (lambda m, x: m.line(m.patch(x).flatten(2)), 1),
        (lambda m, x: m.layer(m.patch(x).flatten(2).transpose(1, 2)).transpose(1, 2).reshape(-1, 8, 4, 4), 1),
        (lambda m, x: m.wide(m.patch(x).permute(0, 2, 3, 1)).chunk(3, -1)[1] * 2.0, 3),
        (lambda m, x: torch.cat([m.patch(x), m.patch(x)], 1), 1),
        (lambda m, x: m.patch(x).mean((2, 3)), 1),
        (heads, 1),  # the trace is lost where channels are split
    ],
)
def test_the_axis_follows_the_channels(captured: Capture, body: Body, axis: int) -> None:
    torch.manual_seed(0)
    graph = captured(Traced(body)).graph
    output = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[0]
    assert channel_axis(output, classify(graph)) == axis
