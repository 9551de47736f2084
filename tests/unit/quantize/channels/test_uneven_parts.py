"""Which tensors are levelled together, and by which factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten
from mixport.quantize.channels.factors import find_factors
from mixport.quantize.channels.uneven_parts import find_parts, is_link
from mixport.quantize.sites.code_flow import CodeFlow
from tests.unit.quantize.conftest import Capture


class Chain(nn.Module):
    """Two convolutions with a Relu between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))).mean((2, 3))


class Bent(nn.Module):
    """The same with a function between them, through which no factor passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x))).mean((2, 3))


def test_a_convolution_that_another_reads_is_a_link(captured: Capture) -> None:
    graph = captured(Chain()).graph
    flow = CodeFlow(graph)
    (part,) = find_parts(flow, find_factors(graph, flow))
    assert is_link(part)
    assert [layer.target for layer in part.layers] == [aten.conv2d.default]
    assert len(part.numbers) == 5, "a factor for each channel between them"


def test_no_factor_passes_a_function(captured: Capture) -> None:
    graph = captured(Bent()).graph
    flow = CodeFlow(graph)
    parts = list(find_parts(flow, find_factors(graph, flow)))
    assert parts == []
