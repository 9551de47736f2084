from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.quantize.scales.histograms import histogram_of
from mixport.quantize.scales.ranges import OUTPUT_MARGIN, ScaleRule, activation_params
from mixport.quantize.sites.planner import make_plan
from mixport.records.choices.scheme import Scheme
from tests.unit.quantize.conftest import Capture, operators

RULE = ScaleRule()


class Head(nn.Module):
    """Stem, what stands before the head, the head, and its result as [N, classes]."""

    def __init__(self, head: nn.Module, *, pool: bool = False, after: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.head, self.pool, self.after = (
            nn.Conv2d(3, 8, 3, stride=4, padding=1),
            head,
            pool,
            after,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = self.head(F.adaptive_avg_pool2d(y, 1) if self.pool else y)
        return (y if self.after is None else self.after(y)).flatten(1)


def outputs_are_codes(captured: Capture, module: nn.Module) -> bool:
    result = captured(module)
    plan = make_plan(result.graph, Scheme(weight_bits=8, activation_bits=8), stream_bits=16)
    return any(site.is_output for site in plan.sites)


@pytest.mark.parametrize(
    ("head", "pool"),
    [
        pytest.param(nn.Conv2d(8, 5, 1), True, id="on pooled features"),
        pytest.param(nn.Conv2d(8, 5, 1, bias=False), True, id="without a bias"),
        pytest.param(nn.Conv2d(8, 5, 4), False, id="covers all places"),
    ],
)
def test_a_convolution_that_gives_the_output_becomes_a_linear_layer(
    captured: Capture, head: nn.Module, pool: bool
) -> None:
    module = Head(head, pool=pool).eval()
    result = captured(module)
    assert operators(result.graph)["conv2d"] == 1
    assert operators(result.graph)["linear"] == 1
    assert [one.what for one in result.decisions if one.where == "head"] == ["convolution as a linear layer"]
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(result.graph(x), module(x), atol=1e-6)
    assert not outputs_are_codes(captured, module)


@pytest.mark.parametrize(
    ("head", "after"),
    [
        pytest.param(nn.Conv2d(8, 5, 3, padding=1), None, id="windows"),
        pytest.param(nn.Conv2d(8, 5, 1), None, id="on every place"),
        pytest.param(nn.Conv2d(8, 8, 1, groups=8), None, id="groups"),
        pytest.param(nn.Conv2d(8, 5, 1, stride=2), None, id="strides"),
        pytest.param(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), id="a mean behind it"),
    ],
)
def test_other_outputs_stay_codes_with_a_margin(
    captured: Capture, head: nn.Module, after: nn.Module | None
) -> None:
    module = Head(head, after=after).eval()
    assert operators(captured(module).graph)["conv2d"] == 2
    assert outputs_are_codes(captured, module)


def test_a_convolution_in_the_middle_stays_one(captured: Capture) -> None:
    module = Head(nn.Conv2d(8, 8, 1), pool=True, after=nn.Sequential(nn.ReLU(), nn.Conv2d(8, 5, 1))).eval()
    found = operators(captured(module).graph)
    assert (found["conv2d"], found["linear"]) == (2, 1)


def test_codes_with_a_margin_cut_nothing_that_was_seen_and_a_quarter_more() -> None:
    values = torch.as_tensor(np.linspace(-2.0, 6.0, 1000), dtype=torch.float32)
    p = activation_params(
        histogram_of(values), bits=8, storage="uint8", bounds=None, rule=RULE, margin=OUTPUT_MARGIN
    )
    assert p.scale == pytest.approx(1.25 * 8 / 255, rel=1e-6)
    assert (p.qmin - p.zero_point) * p.scale == pytest.approx(-2.5, abs=p.scale)
    assert (p.qmax - p.zero_point) * p.scale == pytest.approx(7.5, abs=p.scale)
