"""Learned activation steps: relative or absolute rates, limits, and weights alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixport.quantize.reconstruction.state import LARGEST_FACTOR, LEAST_FACTOR, UnitState
from mixport.quantspec import QuantParams

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
    assert float(unit.activation(_SITE, torch.tensor([99.0]))) == pytest.approx(15 * 0.25 * float(unit.factors["s"]), rel=1e-5)


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
