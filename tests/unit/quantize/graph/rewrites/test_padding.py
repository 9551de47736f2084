"""Pads of every kind: the captured graph gives the module's values (the fixture compares), in forms that run
on codes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mixport.model.programs.fx_graph import aten
from mixport.records.errors import UnsupportedModelError
from tests.unit.quantize.conftest import Capture, operators

INF, LOWEST = float("inf"), torch.finfo(torch.float32).min
Body = Callable[[Tensor], Tensor]


class Padded(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 4, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x)).sigmoid()


def pads_of(graph: fx.GraphModule) -> list[tuple[str, list[int]]]:
    """(mode, amounts) of every pad."""
    nodes = [
        node for node in graph.graph.nodes if node.target in {aten.pad.default, aten.constant_pad_nd.default}
    ]
    return [
        (node.args[2] if node.target is aten.pad.default else "constant", list(node.args[1]))
        for node in nodes
    ]


BORDERS: dict[str, tuple[Body, list[tuple[str, list[int]]], int]] = {
    "reflect": (lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"), [("reflect", [1, 2, 3, 0])], 0),
    "replicate": (lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"), [("replicate", [1, 2, 3, 0])], 0),
    "circular": (lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"), [("circular", [1, 2, 3, 0])], 0),
    "reflect, cropped": (lambda x: F.pad(x, (-1, 2, 3, -2), mode="reflect"), [("reflect", [0, 2, 3, 0])], 2),
    "replicate, cropped": (
        lambda x: F.pad(x, (-1, 2, -3, -2), mode="replicate"),
        [("replicate", [0, 2, 0, 0])],
        2,
    ),
    "circular, cropped": (
        lambda x: F.pad(x, (-1, 2, 3, -2), mode="circular"),
        [("circular", [0, 2, 3, 0])],
        2,
    ),
    "zeros, cropped": (lambda x: F.pad(x, (1, -2)), [("constant", [1, 0])], 1),
    "crop alone": (nn.ZeroPad2d(-2), [], 2),
    "nothing": (lambda x: F.pad(x, (0, 0, 0, 0)), [], 0),
    "channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)), [("constant", [0, 0, 0, 0, 1, 0])], 1),
    "one axis of three": (lambda x: F.pad(x.flatten(2), (1, 2), mode="reflect"), [("reflect", [1, 2])], 0),
    "three axes": (
        lambda x: F.pad(x.unsqueeze(2).repeat(1, 1, 3, 1, 1), (1, 1, 0, 2, 2, 1), mode="reflect"),
        [("reflect", [1, 1, 0, 2, 2, 1])],
        0,
    ),
    "in a convolution": (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        [("circular", [1, 1, 1, 1])],
        0,
    ),
}


@pytest.mark.parametrize(("body", "pads", "slices"), BORDERS.values(), ids=BORDERS.keys())
def test_crops_are_slices_and_borders_stay(
    captured: Capture, body: Body, pads: list[tuple[str, list[int]]], slices: int
) -> None:
    graph = captured(Padded(body)).graph
    assert pads_of(graph) == pads
    assert operators(graph)["slice"] == slices


#: Feature maps are 14x14. What is left of the pad, and the padding of the pool.
INFINITE: dict[str, tuple[Body, list[tuple[str, list[int]]], list[int]]] = {
    "even": (lambda x: F.max_pool2d(F.pad(x, (1, 1, 0, 0), value=-INF), 3, 2), [], [0, 1]),
    "even, lowest": (lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=LOWEST), 3, 1), [], [1, 1]),
    "on top of its own": (
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-INF), 5, 2, padding=1),
        [],
        [2, 2],
    ),
    "dilated": (lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-INF), 2, 1, dilation=2), [], [1, 1]),
    "one side": (
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-INF), 3, 2),
        [("replicate", [0, 1, 0, 1])],
        [0],
    ),
    "wide": (
        lambda x: F.max_pool2d(F.pad(x, (2, 2, 2, 2), value=-INF), 3, 1),
        [("replicate", [2, 2, 2, 2])],
        [0],
    ),
    "rounded up": (
        lambda x: F.max_pool2d(F.pad(x, (1, 0, 0, 0), value=-INF), (3, 4), 3, ceil_mode=True),
        [("replicate", [1, 0, 0, 0])],
        [0, 0],
    ),
}


@pytest.mark.parametrize(("body", "pads", "padding"), INFINITE.values(), ids=INFINITE.keys())
def test_no_code_stands_for_minus_infinity(
    captured: Capture, body: Body, pads: list[tuple[str, list[int]]], padding: list[int]
) -> None:
    result = captured(Padded(body))
    assert pads_of(result.graph) == pads
    pool = next(node for node in result.graph.graph.nodes if node.target is aten.max_pool2d.default)
    assert (list(pool.args[3]) if len(pool.args) > 3 else [0]) == padding
    assert any("minus infinity" in decision.what for decision in result.decisions)


REFUSED: dict[str, tuple[Body, str]] = {
    "nothing but infinity": (
        lambda x: F.max_pool2d(F.pad(x, (3, 3, 0, 0), value=-INF), 3, 1),
        "holds nothing but minus infinity",
    ),
    "no pool": (lambda x: F.pad(x, (1, 1), value=-INF).clamp(min=-9), "where max_pool2d alone reads it"),
    "dilated, one side": (
        lambda x: F.max_pool2d(F.pad(x, (0, 1), value=-INF), 2, 1, dilation=2),
        "with dilation behind an uneven pad",
    ),
    "more than the crop leaves": (
        lambda x: F.pad(x, (9, -8, 0, 0), mode="reflect"),
        r"allowed borders within the 6 values",
    ),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_pads_are_refused_with_a_hint(captured: Capture, body: Body, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        captured(Padded(body))
    assert caught.value.hint
