"""What does not depend on the image is a constant of the captured graph, with the values that torch gave the
model.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixport.model.programs.fx_graph import constant
from mixport.quantize.graph.capture import Captured
from tests.unit.quantize.conftest import Capture, operators


class Placed(nn.Module):
    """A convolution, and something that is added to its result."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.code = nn.Conv2d(3, 4, 1), code
        self.point, self.token = nn.Conv2d(4, 4, 1), nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.code(self, x)


def wave(m: nn.Module, x: Tensor) -> Tensor:
    """A position code as in XCiT: arange, sines, a convolution, repeated for every image."""
    place = torch.arange(1, x.shape[2] + 1).float() / (x.shape[2] + 1e-6) * 6.28
    rows = torch.stack([(place / 10.0 ** (k / 4)).sin() for k in range(4)])
    return m.point((rows[None, :, :, None] + rows[None, :, None, :]).repeat(x.shape[0], 1, 1, 1))


def mask(m: nn.Module, x: Tensor) -> Tensor:
    """As in EdgeNeXt: a mask of zeros for every image, counted along both axes."""
    seen = ~torch.zeros(x.shape[0], x.shape[2], x.shape[3], dtype=torch.bool)
    return m.point(torch.stack([seen.cumsum(axis, dtype=torch.float32) for axis in (1, 2, 1, 2)], 1) / 16)


def filled(m: nn.Module, x: Tensor) -> Tensor:
    """Memory that is filled piece by piece, then expanded, as in ConViT."""
    code = torch.empty(1, 4, 16, 16)
    code[:, :2] = torch.linspace(-1, 1, 16)
    code[:, 2:] = torch.eye(16)
    return m.point(code.expand(x.shape[0], -1, -1, -1)).softmax(-1)


def like(m: nn.Module, x: Tensor) -> Tensor:
    return m.point(torch.full_like(x[:, :1], 0.3) * m.token)


def values_added(captured: Captured) -> list[Tensor]:
    """Constants that an addition reads."""
    graph = captured.graph
    adds = [node for node in graph.graph.nodes if "add" in str(node.target)]
    found = (constant(graph, argument) for node in adds for argument in node.args)
    return [value for value in found if value is not None]


@pytest.mark.parametrize("code", [wave, mask, filled, like])
def test_a_position_code_is_one_constant_of_one_image(
    captured: Capture, code: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    model = Placed(code).requires_grad_(False)
    result = captured(model)
    assert operators(result.graph) == {"conv2d": 1, "add": 1}
    (value,) = values_added(result)
    assert torch.equal(value, code(model, torch.zeros(1, 3, 16, 16)))  # bit by bit what torch computes
    assert result.decisions == ()


class Tokens(nn.Module):
    """A class token that is computed, and joined to what the image gives: it has to be there for every
    image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.token, self.linear = (
            nn.Conv2d(3, 4, 4, 4),
            nn.Parameter(torch.randn(1, 1, 4)),
            nn.Linear(4, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat([self.linear(self.token.expand(x.shape[0], -1, -1)), tokens], 1)


def test_what_is_joined_is_expanded_and_nothing_more(captured: Capture) -> None:
    counts = operators(captured(Tokens().requires_grad_(False)).graph)
    assert (counts["linear"], counts["expand"], counts["cat"], counts["conv2d"]) == (0, 1, 1, 1)


class Windows(nn.Module):
    """A mask for every window of every image, as in Swin: two windows an image along the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.conv(x).reshape(-1, 4, 8, 16)
        ramp = torch.arange(2.0).sqrt()[:, None, None, None].repeat(x.shape[0], 4, 8, 16)
        return windows + ramp.sin()


def test_a_code_for_every_window_is_repeated(captured: Capture) -> None:
    counts = operators(captured(Windows()).graph)
    assert (counts["repeat"], counts["sin"], counts["arange"], counts["add"]) == (1, 0, 0, 1)


class Numbered(nn.Module):
    """A value that depends on how many images there are: it cannot be a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.arange(x.shape[0], dtype=torch.float32)[:, None, None, None]


def test_a_value_that_depends_on_the_batch_stays_and_says_so(captured: Capture) -> None:
    result = captured(Numbered())
    assert operators(result.graph)["arange"] == 1
    assert [decision.why for decision in result.decisions] == ["its value depends on the batch size"]
