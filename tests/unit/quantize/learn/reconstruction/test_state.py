"""Learned activation steps: relative or absolute rates, limits, and weights alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from mixport.arithmetic import integer
from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.reconstruction.layer_values import LayerValues
from mixport.quantize.learn.reconstruction.state import LARGEST_FACTOR, LEAST_FACTOR, UnitState

_CPU = torch.device("cpu")
_PARAMS = {"s": QuantParams(scale=0.25, zero_point=0, qmin=0, qmax=15, storage="uint8")}
_SITE: Any = SimpleNamespace(name="s")  # only the name is read


def state(*, activations: bool = True) -> UnitState:
    return UnitState(_PARAMS, {}, sites=["s"], device=_CPU, activations=activations)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_adam_step_moves_steps_relatively_or_absolutely(absolute: bool) -> None:
    unit, x = state(), torch.tensor([0.3, 1.6, 9.0])
    fixed = unit.activation(_SITE, x)
    optimizer = torch.optim.Adam(unit.learn_steps(["s"], device=_CPU, absolute=absolute), lr=1e-2)
    assert torch.equal(unit.activation(_SITE, x).detach(), fixed)
    unit.activation(_SITE, x).sum().backward()
    optimizer.step()
    unit.freeze()
    assert float(unit.factors["s"]) == pytest.approx(1 - (1e-2 / 0.25 if absolute else 1e-2), rel=1e-4)
    assert not unit.factors["s"].requires_grad
    assert float(unit.activation(_SITE, torch.tensor([99.0]))) == pytest.approx(
        15 * 0.25 * float(unit.factors["s"]), rel=1e-5
    )


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("value", "limit"), [(-3.0, LEAST_FACTOR), (1e3, LARGEST_FACTOR)])
def test_steps_stay_within_their_limits(absolute: bool, value: float, limit: float) -> None:
    unit = state()
    (learned,) = unit.learn_steps(["s"], device=_CPU, absolute=absolute)
    with torch.no_grad():
        learned.fill_(value)
    assert float(unit.activation(_SITE, torch.tensor([999.0])).detach()) == pytest.approx(15 * 0.25 * limit)


def test_activations_pass_where_weights_alone_are_quantised() -> None:
    x = torch.tensor([0.3, -1.0, 99.0])
    assert state(activations=False).activation(_SITE, x) is x


def test_biases_are_rounded_to_the_step_as_it_is_now_and_straight_through() -> None:
    layer, random = fx.Graph().placeholder("layer"), np.random.default_rng(0)
    scales, bias = (
        random.uniform(0.01, 1.0, 64).astype(np.float32),
        random.normal(0, 1, 64).astype(np.float32),
    )
    bias[:2] = 1e6, 0.125 * scales[1]  # a code above 2^24; a tie
    fixed = LayerIntegers(scales=scales, codes=np.ones((64, 3), np.int8), bias=bias)
    unit = UnitState(_PARAMS, {layer: fixed}, sites=[], reads={layer: "s"}, device=_CPU)

    def expected(step: float, scales: np.ndarray, bias: np.ndarray) -> np.ndarray:
        codes, unit_of = integer.quantise_bias(bias, x_scale=step, w_scale=scales)
        return codes.astype(np.float32) * unit_of

    _, got = unit.weights(layer) or pytest.fail("no values")
    assert got is not None
    np.testing.assert_array_equal(got.numpy(), expected(0.25, scales, bias))
    (factor,) = unit.learn_steps(["s"], device=_CPU)
    learned = LayerValues(
        weight=torch.ones(64, 3),
        scales=torch.tensor(scales * 1.5),
        bias=torch.tensor(bias + 0.3, requires_grad=True),
    )
    unit.learned = {layer: learned}
    with torch.no_grad():
        factor.fill_(1.1)
    _, got = unit.weights(layer) or pytest.fail("no values")
    assert got is not None and learned.bias is not None
    step = float(np.float32(0.25 * float(np.float32(1.1))))
    np.testing.assert_array_equal(
        got.detach().numpy(), expected(step, scales * np.float32(1.5), (learned.bias.detach()).numpy())
    )
    got.sum().backward()
    assert torch.equal(learned.bias.grad, torch.ones(64))
    assert factor.grad is None
