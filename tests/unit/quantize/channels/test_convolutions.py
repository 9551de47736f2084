from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mixport.lower import lower
from mixport.model.programs.fx_graph import aten
from mixport.quantize.channels.convolutions import channel_ratios, level_convolutions
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.graph.capture import Captured
from mixport.quantize.graph.marks import CHANNEL_BOUNDS
from mixport.quantize.graph.roles import clamp_bounds
from mixport.quantize.quantizer import quantize
from mixport.quantize.scales.ranges import ScaleRule
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision
from mixport.records.targets import load_target
from mixport.validate.validate import validate
from tests.reconstruction import calibration_of, float_model, seeded
from tests.unit.quantize.conftest import Capture

_RULE = ScaleRule()


class Bottleneck(nn.Module):
    """Stem, inverted bottleneck, head; the depthwise layer's input channels differ by up to 64 times."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6, *, bias: bool = True, pad: int = 1) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1, bias=bias)
        self.depthwise, self.project = (
            nn.Conv2d(16, 16, 3, padding=pad, groups=16, bias=bias),
            nn.Conv2d(16, 8, 1),
        )
        self.last, self.head, self.act = nn.Conv2d(8, 8, 1), nn.Linear(8, 5), act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.expand(self.act(self.stem(x))))
        x = self.project(self.act(self.depthwise(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def spread(m: Bottleneck) -> None:
    """Widen the channels unevenly, undone in the depthwise layer."""
    width = 2.0 ** torch.linspace(-3, 3, 16)
    m.expand.weight *= width.view(-1, 1, 1, 1)
    if m.expand.bias is not None:
        m.expand.bias *= width
    m.depthwise.weight /= width.view(-1, 1, 1, 1)


def level(result: Captured, *, scheme: str = "w4a4") -> list[Decision]:
    """Level the convolutions of a captured graph on eight images; its logits must stay."""
    images = 2 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected: Tensor = result.graph(images)
        decisions = level_convolutions(
            result.graph, torch.split(images, 4), images=8, scheme=Scheme.parse(scheme), rule=_RULE
        )
        got: Tensor = result.graph(images)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    return decisions


@pytest.mark.parametrize("act", [nn.ReLU, pytest.param(nn.ReLU6, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pad", [0, 1])
def test_a_depthwise_layers_input_is_levelled_and_the_function_stays(
    captured: Capture, act: type[nn.Module], bias: bool, pad: int
) -> None:
    result = captured(seeded(lambda: Bottleneck(act, bias=bias, pad=pad), spread))
    decisions = level(result)
    (found,) = [one for one in decisions if one.where == "expand"]
    assert found.what.startswith("outputs divided by 0.0") and found.what.endswith("undone in depthwise")
    levelled = sum(CHANNEL_BOUNDS in node.meta for node in result.graph.graph.nodes)
    assert levelled == (len([one for one in decisions if one.where != "project"]) if act is nn.ReLU6 else 0)


def test_a_bound_for_each_channel_is_a_clamp_whose_codes_end_at_the_lowest(captured: Capture) -> None:
    result = captured(seeded(Bottleneck, spread))
    level(result)
    clamps = [node for node in result.graph.graph.nodes if node.target is aten.clamp.Tensor]
    assert clamps and all(clamp_bounds(node) == (0.0, 6.0) for node in clamps)


def test_only_codes_narrower_than_8_bits_between_convolutions_are_levelled(captured: Capture) -> None:
    assert level(captured(seeded(Bottleneck, spread)), scheme="w4a8") == []
    changed = {one.where for one in level(captured(seeded(Bottleneck, spread)))}
    assert "expand" in changed and not changed & {
        "stem",
        "last",
        "head",
    }  # edge bits, a pool, a linear layer behind them


class Residual(nn.Module):
    """What the depthwise layer reads is read by an add too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)
        self.depthwise, self.last = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.expand(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.last(x + self.depthwise(x))).mean((2, 3)))


def test_a_tensor_with_other_readers_stays(captured: Capture) -> None:
    def widen(m: Residual) -> None:
        m.expand.weight *= (2.0 ** torch.linspace(-3, 3, 16)).view(-1, 1, 1, 1)

    assert "expand" not in {one.where for one in level(captured(seeded(Residual, widen)))}


class Plain(nn.Module):
    """Full convolutions: their weights share scales along the input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def test_full_convolutions_change_only_where_much_is_won(captured: Capture) -> None:
    assert level(captured(seeded(Plain))) == []

    def widen(m: Plain) -> None:
        assert m.second.bias is not None
        width = 2.0 ** torch.linspace(-4, 4, 8)
        m.second.weight *= width.view(-1, 1, 1, 1)
        m.second.bias *= width
        m.third.weight /= width.view(1, -1, 1, 1)

    assert [one.where for one in level(captured(seeded(Plain, widen)))] == ["second"]


@pytest.mark.parametrize(
    ("learned", "gain", "levelled"),
    [(False, 0.85, []), (False, 0.79, ["depthwise", "project"]), (True, 0.85, ["depthwise"])],
)
def test_learned_1_x_1_weights_need_to_win_less(
    captured: Capture, monkeypatch: pytest.MonkeyPatch, learned: bool, gain: float, levelled: list[str]
) -> None:
    """`project` reads what `depthwise` gives, 1 x 1; `last` reads what `project` gives, 3 x 3 here. In front
    of `depthwise` all is free.
    """

    def judge(rows: Tensor, ratio: np.ndarray, *_: object, **__: object) -> float:
        return 1.0 if (ratio == 1).all() else gain

    for name in ("nearest_error", "learned_error"):
        monkeypatch.setattr(f"mixport.quantize.channels.convolutions.{name}", judge)

    def wide(m: Bottleneck) -> None:
        m.last = nn.Conv2d(8, 8, 3)

    result = captured(seeded(Bottleneck, wide))
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    found = level_convolutions(
        result.graph,
        torch.split(images, 4),
        images=8,
        scheme=Scheme.parse("w4a4"),
        rule=_RULE,
        learned=learned,
    )
    assert [one.where for one in found if one.where in ("depthwise", "project")] == levelled


def test_a_channel_that_fires_seldom_keeps_its_range() -> None:
    rows = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = 0.0
    rows[::1000, 1] = 1.0  # beyond any 99.9 % quantile
    rows[:, 2] *= 0.25
    ratios = channel_ratios(rows, bits=4, signed=False)
    assert min(ratios[:2]) > 0.99
    assert 0.2 < ratios[2] < 0.3


def test_silent_channels_and_the_least_ratio() -> None:
    rows = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = 0.0
    rows[:, 2] *= 1e-6
    assert channel_ratios(rows, bits=4, signed=True).tolist() == [1.0, 1.0, 1 / 16]
    assert channel_ratios(torch.zeros(10, 2), bits=4, signed=False).tolist() == [1.0, 1.0]


@given(st.integers(2, 7), st.booleans(), st.integers(-20, 20), st.integers(0, 2**32 - 1))
def test_ratios_do_not_depend_on_the_unit(bits: int, signed: bool, exponent: int, seed: int) -> None:
    rows = torch.as_tensor(np.random.default_rng(seed).standard_normal((64, 4)), dtype=torch.float32)
    rows = rows if signed else rows.abs()
    ratios = channel_ratios(rows, bits=bits, signed=signed)
    assert ((ratios >= 1 / 16) & (ratios <= 1.0)).all() and ratios.max() == 1.0
    np.testing.assert_array_equal(channel_ratios(rows * 2.0**exponent, bits=bits, signed=signed), ratios)


def no_levelling(*_: object, **__: object) -> list[Decision]:
    return []


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_the_file_is_exact_and_closer_to_the_float_model(
    act: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = seeded(lambda: Bottleneck(act), spread)
    calibration, target = calibration_of(tmp_path, images=64), load_target("ort-cpu")
    images = np.random.default_rng(1).standard_normal((32, 3, 16, 16)).astype(np.float32)

    def error(folder: Path) -> float:
        folder.mkdir()
        quantized = quantize(
            float_model(module), calibration, target, scheme=Scheme.parse("w6a4"), workdir=folder
        )
        assert any("divided" in one.what for one in quantized.decisions) == (folder.name == "levelled")
        simulation = open_simulation(quantized)
        (folder / "file").mkdir()
        report = validate(
            lower(quantized, target, workdir=folder / "file"), images, target, simulation=simulation
        )
        assert report.verdict == "exact"
        with torch.no_grad():
            wanted: Tensor = module(torch.as_tensor(images))
        return float(
            (torch.as_tensor(simulation.simulate(images, overrides={}).codes["output"]) - wanted)
            .square()
            .mean()
            / wanted.var()
        )

    levelled = error(tmp_path / "levelled")
    monkeypatch.setattr("mixport.quantize.prepare.level_convolutions", no_levelling)
    assert levelled < 0.5 * error(tmp_path / "as it was")
