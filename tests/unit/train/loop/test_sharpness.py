"""SAM and ASAM on a quadratic, against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixport.train.loop.sharpness import SharpnessAware

CURVATURE = (torch.tensor([1.0, 4.0, 0.5]), torch.tensor([[2.0], [3.0]]))
START = (torch.tensor([0.5, -2.0, 0.0]), torch.tensor([[1.5], [-0.25]]))
RHO, ETA = 0.3, 0.01


class Quadratic:
    """sum of a p^2 / 2, whose gradient is a p; counts how often it is asked."""

    def __init__(self) -> None:
        self.parameters = [nn.Parameter(one.clone()) for one in START]
        self.points: list[list[Tensor]] = []

    def __call__(self) -> Tensor:
        for one in self.parameters:
            one.grad = None
        self.points.append([one.detach().clone() for one in self.parameters])
        pairs = zip(CURVATURE, self.parameters, strict=True)
        loss = torch.stack([(a * p.square()).sum() / 2 for a, p in pairs]).sum()
        loss.backward()
        return loss.detach()


def moves(*, adaptive: bool) -> list[Tensor]:
    """rho T^2 g / |T g|, in float64; T is the identity for SAM and |p| + eta for ASAM."""
    points, curves = [one.double() for one in START], [one.double() for one in CURVATURE]
    sizes = [one.abs() + ETA if adaptive else torch.ones_like(one) for one in points]
    gradients = [a * p for a, p in zip(curves, points, strict=True)]
    norm = sum(float((t * g).square().sum()) for t, g in zip(sizes, gradients, strict=True)) ** 0.5
    return [RHO * t.square() * g / norm for t, g in zip(sizes, gradients, strict=True)]


@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
def test_the_gradient_is_that_of_the_moved_point(*, adaptive: bool) -> None:
    closure = Quadratic()
    loss = SharpnessAware(closure.parameters, rho=RHO, adaptive=adaptive)(closure)
    at_home, moved = closure.points
    assert float(loss) == pytest.approx(0.125 + 8.0 + 2.25 + 0.09375, rel=1e-6), "the loss at home"
    for home, there, move, p, a in zip(
        at_home, moved, moves(adaptive=adaptive), closure.parameters, CURVATURE, strict=True
    ):
        # A dozen float32 roundings of numbers up to 4.
        torch.testing.assert_close((there - home).double(), move, rtol=0, atol=2e-6)
        assert p.grad is not None
        torch.testing.assert_close(p.grad.double(), a.double() * (home.double() + move), rtol=0, atol=4e-6)


def test_sam_goes_as_far_as_rho() -> None:
    closure = Quadratic()
    SharpnessAware(closure.parameters, rho=RHO, adaptive=False)(closure)
    far = [there - home for home, there in zip(*closure.points, strict=True)]
    norm = float(torch.cat([one.flatten() for one in far]).norm())
    assert norm == pytest.approx(RHO, rel=1e-5)


@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
def test_parameters_are_bit_for_bit_where_they_were(*, adaptive: bool) -> None:
    """Adding a move and taking it away again rounds twice: small weights would drift."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(1000, generator=generator) * 1e-3)
    before = parameter.detach().clone()

    def closure() -> Tensor:
        parameter.grad = None
        loss = parameter.sin().sum()
        loss.backward()
        return loss.detach()

    SharpnessAware([parameter], rho=0.5, adaptive=adaptive)(closure)
    assert torch.equal(parameter.detach(), before)


def test_what_has_no_gradient_is_not_moved() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    seen: list[Tensor] = []

    def closure() -> Tensor:
        used.grad = None
        seen.append(unused.detach().clone())
        loss = used.square().sum()
        loss.backward()
        return loss.detach()

    SharpnessAware([used, unused], rho=0.5, adaptive=False)(closure)
    assert torch.equal(seen[1], torch.ones(2)) and unused.grad is None


def test_a_gradient_of_zero_moves_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(3))

    def closure() -> Tensor:
        parameter.grad = None
        loss = parameter.square().sum()
        loss.backward()
        return loss.detach()

    SharpnessAware([parameter], rho=0.5, adaptive=False)(closure)
    assert parameter.grad is not None and torch.equal(parameter.grad, torch.zeros(3))
