"""SiLU and hard swish as products: the rewrite, the names, and the scales that make a hard sigmoid the bounds
of its input's codes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixport.arithmetic import integer
from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.quantize.emit.tables import make_table
from mixport.quantize.scales.gate_params import settle_gates
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.planner import QuantizationPlan, make_plan
from mixport.records.choices.scheme import Scheme
from tests.unit.quantize.conftest import Capture, operators

RULE = ScaleRule()


class Activated(nn.Module):
    def __init__(self, act: nn.Module, *, between: nn.Module | None = None, reuse: bool = False) -> None:
        super().__init__()
        self.conv, self.act, self.between = nn.Conv2d(3, 8, 3), act, between or nn.Identity()
        self.last, self.reuse = nn.Conv2d(8, 4, 1), reuse

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.last(self.between(self.act(x)))
        return (y + x[:, :4] if self.reuse else y).mean((2, 3))


def planned(captured: Capture, module: nn.Module) -> QuantizationPlan:
    return make_plan(captured(module).graph, Scheme.parse("w8a8"), stream_bits=16)


def uint8(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(
        scale=float(np.float32(scale)), zero_point=zero_point, qmin=0, qmax=255, storage="uint8"
    )


@pytest.mark.parametrize(("act", "gate"), [(nn.SiLU(), "sigmoid"), (nn.Hardswish(), "hardsigmoid")])
def test_a_gated_function_is_a_product_with_its_gate(captured: Capture, act: nn.Module, gate: str) -> None:
    graph = captured(Activated(act)).graph
    found = operators(graph)
    assert (found[gate], found["mul"], found["silu"], found["hardswish"]) == (1, 1, 0, 0)
    names = [site.name for site in make_plan(graph, Scheme.parse("w8a8"), stream_bits=16).sites]
    # The product's codes are the module's; the gate says what it is.
    assert names[:4] == ["input.codes", "conv", f"act.{gate}", "act"]


def test_with_more_functions_around_it_stays_one_table(captured: Capture) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.7

    plan = planned(captured, Activated(nn.SiLU(), between=Twice()))
    (site,) = [site for site in plan.sites if site.chain]
    assert [str(node.target) for node in site.chain] == ["aten.silu.default", "aten.mul.Tensor"]


def _settled(plan: QuantizationPlan, x: QuantParams) -> tuple[QuantParams, QuantParams]:
    params = {site.name: uint8(1 / 255, 0) for site in plan.sites}
    settled = settle_gates(plan, {**params, "conv": x}, RULE)
    return settled["conv"], settled["act.hardsigmoid"]


def test_the_scale_divides_three_and_codes_start_there(captured: Capture) -> None:
    x, gate = _settled(planned(captured, Activated(nn.Hardswish())), uint8(10 / 255, 128))  # from -5 to 5
    steps = x.zero_point
    assert steps == 255 * 3 // (3 + 127 * 10 / 255)
    assert x.scale == np.float32(3 / steps)
    assert (255 - steps) * x.scale >= 127 * 10 / 255
    assert (gate.scale, gate.zero_point) == (np.float32(x.scale / 6), 0)


def test_the_gate_s_table_bounds_the_codes_of_its_input(captured: Capture) -> None:
    plan = planned(captured, Activated(nn.Hardswish()))
    x, gate = _settled(plan, uint8(10 / 255, 128))
    (site,) = [site for site in plan.sites if site.chain]
    made = make_table(site.chain, x, gate)
    np.testing.assert_array_equal(made.entries, np.minimum(np.arange(256), 2 * x.zero_point))
    assert (made.params.qmin, made.params.qmax) == (0, 2 * x.zero_point)
    # The product of both is hard swish, rounded once.
    y = uint8(6 / 255, 16)
    multiplier = integer.conv_multiplier(x.scale, made.params.scale, y.scale)
    codes = np.arange(256)
    got = integer.multiply(
        codes,
        made.entries,
        a_zero_point=x.zero_point,
        b_zero_point=0,
        multiplier=multiplier,
        zero_point=y.zero_point,
        qmin=0,
        qmax=255,
    )
    real = (
        torch.nn.functional.hardswish(
            (torch.arange(256, dtype=torch.float64) - x.zero_point) * x.scale
        ).numpy()
        / y.scale
        + y.zero_point
    )
    assert np.abs(got - np.clip(real, 0, 255)).max() <= 0.5 + 1e-4


def test_a_range_that_does_not_reach_the_bend_keeps_its_codes(captured: Capture) -> None:
    x, gate = _settled(planned(captured, Activated(nn.Hardswish())), uint8(1 / 255, 128))
    assert (x, gate) == (uint8(1 / 255, 128), uint8(1 / 255, 0))


def test_other_readers_keep_the_range(captured: Capture) -> None:
    """The sum reads what lies below -3, too: the zero point stays, and the scale moves up to where it divides
    3.
    """
    plan = planned(captured, Activated(nn.Hardswish(), reuse=True))
    x, gate = _settled(plan, uint8(10 / 255, 128))
    assert x == uint8(3 / 76, 128)
    assert (gate.scale, gate.zero_point) == (np.float32(x.scale / 6), 128 - 76)
    (site,) = [site for site in plan.sites if site.chain]
    made = make_table(site.chain, x, gate)
    np.testing.assert_array_equal(made.entries, np.clip(np.arange(256), 128 - 76, 128 + 76))


def test_power_of_two_scales_stay(captured: Capture) -> None:
    plan = planned(captured, Activated(nn.Hardswish()))
    params = {site.name: uint8(2.0**-4, 128) for site in plan.sites}
    assert settle_gates(plan, params, ScaleRule(grid=ScaleGrid(power_of_two=True))) == params
