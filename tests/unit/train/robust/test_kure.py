"""Kurtosis of known distributions."""

from __future__ import annotations

import pytest
import torch

from mixport.train.robust.kure import UNIFORM, kurtosis_loss


def test_two_values_have_kurtosis_1() -> None:
    weight = torch.tensor([[3.0, -1.0], [3.0, -1.0]])
    assert float(kurtosis_loss(weight, target=1.0)) == 0.0
    # (1 - 1.8)^2, a float32 rounding or two of it.
    assert float(kurtosis_loss(weight)) == pytest.approx(0.64, rel=1e-6)


def test_three_values_by_hand() -> None:
    """-1 0 1: the fourth moment is 2/3, the variance 2/3, so 3/2."""
    found = kurtosis_loss(torch.tensor([-1.0, 0.0, 1.0]), target=0.0)
    assert float(found) == pytest.approx(2.25, rel=1e-6)


def test_a_uniform_distribution_is_at_the_target() -> None:
    found = float(kurtosis_loss(torch.linspace(-1.0, 1.0, 10_001), target=0.0)) ** 0.5
    # 9/5 (1 - 2 / (3 (n^2 - 1)) ...) for n even steps: far below float32's roundings of the sums.
    assert found == pytest.approx(1.8, rel=1e-4)
    assert UNIFORM == 1.8
    assert float(kurtosis_loss(torch.linspace(-1.0, 1.0, 10_001))) < 1e-6


def test_neither_place_nor_scale_matter() -> None:
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0))
    wanted = float(kurtosis_loss(weight))
    assert wanted > 0.5, "a normal distribution has 3"
    # Moments of 500 numbers, the fourth power of each: a few hundred roundings at most.
    assert float(kurtosis_loss(weight * 8.0 + 1.0)) == pytest.approx(wanted, rel=1e-4)


def test_equal_weights_are_no_division_by_zero() -> None:
    weight = torch.full((5,), 0.5, requires_grad=True)
    loss = kurtosis_loss(weight)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(UNIFORM**2, rel=1e-6)
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


def test_the_gradient_makes_a_normal_one_more_uniform() -> None:
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = kurtosis_loss(weight)
    before.backward()
    assert weight.grad is not None
    after = kurtosis_loss(weight.detach() - 0.1 * weight.grad)
    assert float(after) < float(before.detach())
