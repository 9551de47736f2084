"""Where the graph is cut into units, and which neighbours are merged."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from mixport.model.programs.fx_graph import module_path
from mixport.quantize.graph.capture import Captured
from mixport.quantize.graph.roles import Kind
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.merging import capacity, merge_neighbours
from mixport.quantize.learn.units.units import Unit, find_units, merge_units
from mixport.quantize.sites.planner import QuantizationPlan, make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.choices.reconstruction_preset import Grain
from mixport.records.choices.scheme import Scheme
from tests.models import tiny, transformer
from tests.unit.quantize.conftest import Capture

_SCHEME = Scheme.parse("w4a4")


def conv(inputs: int = 8, outputs: int = 8, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class Residual(nn.Module):
    """A block that adds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu(self.a(x))))


class Inner(nn.Module):
    """A module that holds a chain of its own and adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))


class Beside(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(8, 4), conv(8, 4), conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.c(torch.relu(torch.cat([self.a(x), self.b(x)], 1))))


class Whole(nn.Module):
    """Stem, bodies, mean, head."""

    def __init__(self, *bodies: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), nn.Linear(width, 5)
        self.body = nn.Sequential(*bodies)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


def cut(result: Captured, grain: Grain = "block") -> tuple[tuple[Unit, ...], QuantizationPlan]:
    plan = make_plan(result.graph, _SCHEME, stream_bits=16)
    units = find_units(result.graph, plan, grain=grain)
    check(result, plan, units)
    return units, plan


def check(result: Captured, plan: QuantizationPlan, units: tuple[Unit, ...]) -> None:
    """Every layer lies in one unit, units join, and together they are the model."""
    layers = [layer for unit in units for layer in unit.layers]
    assert layers == [node for node in result.graph.graph.nodes if plan.kinds.get(node) is Kind.LAYER]
    for first, second in itertools.pairwise(units):
        assert second.input is first.output
    size = next(node for node in result.graph.graph.nodes if node.op == "placeholder").meta["shape"][-1]
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    executor = Executor(
        result.graph, plan, input_shape=(1, 3, size, size), dynamic_batch=True, device=torch.device("cpu")
    )
    value = x
    with torch.no_grad():
        for unit in units:
            value = executor.run(unit, value, images=3)
        assert torch.equal(value, executor.run(merge_units(units), x, images=3))
        torch.testing.assert_close(value, result.graph(x), rtol=1e-5, atol=1e-6)


def layers(units: tuple[Unit, ...]) -> list[list[str]]:
    return [[module_path(layer) for layer in unit.layers] for unit in units]


def test_a_residual_block_is_one_unit_at_any_grain(captured: Capture) -> None:
    result = captured(Whole(Residual(), Residual()))
    expected = [["stem"], ["body.0.a", "body.0.b"], ["body.1.a", "body.1.b"], ["head"]]
    for grain in ("block", "layer"):
        units, _ = cut(result, grain)
        assert layers(units) == expected


def test_a_chain_in_a_sequential_is_cut_at_every_layer(captured: Capture) -> None:
    units, _ = cut(captured(Whole(conv(), nn.ReLU(), conv(), nn.ReLU())))
    assert layers(units) == [["stem"], ["body.0"], ["body.2"], ["head"]]


def test_the_layers_of_one_module_are_a_block(captured: Capture) -> None:
    result = captured(Whole(Inner(), Inner()))
    assert layers(cut(result)[0]) == [["stem"], ["body.0.a", "body.0.b"], ["body.1.a", "body.1.b"], ["head"]]
    assert len(cut(result, "layer")[0]) == 6


class AroundAll(nn.Module):
    """The image itself is added to what two layers made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x + self.b(torch.relu(self.a(x)))).mean((2, 3)))


def test_an_image_that_is_read_again_keeps_everything_before_in_one_unit(captured: Capture) -> None:
    assert layers(cut(captured(AroundAll()), "layer")[0]) == [["a", "b"], ["head"]]


def test_branches_side_by_side_stay_together(captured: Capture) -> None:
    units, _ = cut(captured(Whole(Beside())), "layer")
    assert layers(units)[1][:2] == ["body.0.a", "body.0.b"]


def test_units_of_the_test_models(captured: Capture) -> None:
    units, _ = cut(captured(tiny(), size=32))
    assert [unit.name for unit in units] == ["stem.0", "branch.0", "depthwise.0", "gate", "head"]
    units, _ = cut(captured(transformer(), size=32))
    assert layers(units) == [["patch"], ["qkv", "proj"], ["merge"], ["fc1", "fc2"], ["head"]]


def test_the_neighbours_of_most_different_capacity_are_merged_first(captured: Capture) -> None:
    chain = [
        conv(8, 8),
        nn.ReLU(),
        conv(8, 16),
        nn.ReLU(),
        conv(16, 4),
        nn.ReLU(),
        conv(4, 4, stride=2),
        nn.ReLU(),
        conv(4, 4, stride=2),
    ]
    result = captured(Whole(*chain, width=4))
    units, plan = cut(result)
    widths = scheme_widths(result.graph, plan, _SCHEME)
    assert [capacity(unit, widths) // 9 for unit in units[:-1]] == [
        3 * 8 * 8,
        8 * 8 * 4,
        8 * 16 * 4,
        16 * 4 * 4,
        16 * 4,
        16 * 4,
    ]
    # Five layers of stride 1 make three pairs that are alike, the strided ones a fourth; the stem has 8 bits
    # and little capacity.
    one = merge_neighbours(units, widths, part=0.25)
    assert layers(one) == [["stem"], ["body.0", "body.2"], ["body.4"], ["body.6"], ["body.8"], ["head"]]
    check(result, plan, one)
    most = merge_neighbours(units, widths, part=1.0)
    assert layers(most) == [["stem"], ["body.0", "body.2", "body.4"], ["body.6", "body.8"], ["head"]]
    check(result, plan, most)
    assert merge_neighbours(units, widths, part=0.0) == units


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_units_that_are_not_alike_stay_apart(captured: Capture, part: float) -> None:
    result = captured(Whole(Residual(), conv(8, 8, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)))
    units, plan = cut(result)
    assert merge_neighbours(units, scheme_widths(result.graph, plan, _SCHEME), part=part) == units
