"""Scales behind global average pools: as small as the kernel of ONNX Runtime accepts, and no smaller."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.quantize.graph.roles import Kind
from mixport.quantize.scales.pool_scales import widen_pool_scales
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.planner import QuantizationPlan, make_plan
from mixport.records.choices.scheme import Scheme
from tests.unit.quantize.conftest import Capture

ANY, POWERS = ScaleRule(), ScaleRule(grid=ScaleGrid(power_of_two=True))
PIXELS = 14 * 14


class Pooled(nn.Module):
    def __init__(self, body: Callable[[Pooled, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.conv = body, nn.Conv2d(3, 4, 3)
        self.fc, self.other, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def plain(net: Pooled, x: Tensor) -> Tensor:
    return net.fc(net.conv(x).mean((2, 3)))


def moved(net: Pooled, x: Tensor) -> Tensor:
    return net.fc(net.conv(x).roll(1, 1).narrow(3, 0, 7).mean((2, 3)))


def tied(net: Pooled, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.fc(torch.cat([y.mean((2, 3)), y.amax((2, 3))[:, :0]], 1) + net.other(y.mean((2, 3))))


def planned(
    captured: Capture, body: Callable[[Pooled, Tensor], Tensor], *, pooled: float, behind: float
) -> tuple[QuantizationPlan, dict[str, QuantParams], list[str]]:
    """The plan, a scale for what pools read and one for everything else, and the sites behind pools."""
    plan = make_plan(captured(Pooled(body)).graph, Scheme.parse("w8a8"), stream_bits=16)
    names = [site.name for site in plan.sites if plan.kinds[site.source] is Kind.POOL]
    params = {
        site.name: QuantParams(
            scale=behind if site.name in names else pooled, zero_point=3, qmin=0, qmax=255, storage="uint8"
        )
        for site in plan.sites
    }
    return plan, params, names


def accepted(x_scale: float, y_scale: float, pixels: int) -> bool:
    """As ONNX Runtime computes it, in float32."""
    return bool(np.float32(x_scale) / (np.float32(pixels) * np.float32(y_scale)) < 256)


def test_a_tiny_scale_becomes_the_smallest_that_is_half_of_what_the_kernel_accepts(captured: Capture) -> None:
    plan, params, (name,) = planned(captured, plain, pooled=0.5, behind=1e-12)
    assert not accepted(0.5, 1e-12, PIXELS)
    found = widen_pool_scales(plan, params, ANY)
    least = np.float32(0.5 / (PIXELS * 128))
    assert found[name].scale == float(np.nextafter(least, np.float32(np.inf)))
    assert accepted(0.5, found[name].scale, PIXELS)
    assert (found[name].zero_point, found[name].qmin, found[name].qmax) == (3, 0, 255)
    assert {key: value for key, value in found.items() if key != name} == {
        key: value for key, value in params.items() if key != name
    }


def test_what_was_given_stays_as_it_is(captured: Capture) -> None:
    plan, params, _ = planned(captured, plain, pooled=0.5, behind=1e-12)
    before = dict(params)
    assert widen_pool_scales(plan, params, ANY) is not params and params == before


@pytest.mark.parametrize("rule", [ANY, POWERS])
def test_scales_that_are_large_enough_stay(captured: Capture, rule: ScaleRule) -> None:
    plan, params, (name,) = planned(captured, plain, pooled=0.5, behind=0.5 / (PIXELS * 128))
    assert widen_pool_scales(plan, params, rule) == params
    assert accepted(0.5, params[name].scale, PIXELS)


def test_what_was_widened_once_stays(captured: Capture) -> None:
    plan, params, _ = planned(captured, plain, pooled=0.3, behind=1e-9)
    once = widen_pool_scales(plan, params, ANY)
    assert widen_pool_scales(plan, once, ANY) == once


def test_on_a_grid_of_powers_it_is_the_next_power(captured: Capture) -> None:
    plan, params, (name,) = planned(captured, plain, pooled=0.5, behind=2.0**-40)
    # 0.5 / (196 * 128) is between 2^-16 and 2^-15.
    assert widen_pool_scales(plan, params, POWERS)[name].scale == 2.0**-15


def test_what_is_pooled_is_found_behind_movement(captured: Capture) -> None:
    plan, params, (name,) = planned(captured, moved, pooled=0.5, behind=1e-12)
    least = np.float32(0.5 / (14 * 7 * 128))
    assert widen_pool_scales(plan, params, ANY)[name].scale == float(np.nextafter(least, np.float32(np.inf)))


def test_sixteen_bits_keep_their_codes(captured: Capture) -> None:
    plan, params, (name,) = planned(captured, plain, pooled=0.5, behind=1e-12)
    params[name] = QuantParams(scale=1e-12, zero_point=0, qmin=-32768, qmax=32767, storage="int16")
    found = widen_pool_scales(plan, params, ANY)[name]
    assert (found.zero_point, found.qmin, found.qmax, found.storage) == (0, -32768, 32767, "int16")
    assert found.scale > 0.5 / (PIXELS * 128)


def test_scales_that_others_share_stay(captured: Capture) -> None:
    plan, params, names = planned(captured, tied, pooled=0.5, behind=1e-12)
    members = {name for group in plan.groups for name in group.members}
    assert members & set(names)
    found = widen_pool_scales(plan, params, ANY)
    assert all(found[name] == params[name] for name in members)
