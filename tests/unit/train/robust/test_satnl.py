"""The bounded function in front of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from mixport.train.robust.satnl import SatNL, bound_weights

BOUND = 0.75
ULP = 2.0**-23


def wide() -> torch.Tensor:
    return torch.linspace(-5.0, 5.0, 2001)


def test_it_is_odd_bounded_and_rises() -> None:
    found = SatNL(BOUND)(wide())
    assert torch.equal(SatNL(BOUND)(-wide()), -found)
    assert float(found.abs().max()) <= BOUND
    assert (found.diff() >= 0).all() and float(SatNL(BOUND)(torch.zeros(()))) == 0.0


def test_its_slope_is_1_at_0_and_nowhere_steeper() -> None:
    v = wide().requires_grad_()
    SatNL(BOUND)(v).sum().backward()
    assert v.grad is not None
    assert float(v.grad[1000]) == 1.0
    assert float(v.grad.max()) == 1.0 and float(v.grad.min()) >= 0.0
    assert float(v.grad[0]) < 1e-4


def test_far_inside_the_bound_weights_are_nearly_their_own() -> None:
    v = torch.tensor([1e-3, -1e-3])
    # tanh(x) = x - x^3 / 3: relative (1e-3 / 0.75)^2 / 3.
    torch.testing.assert_close(SatNL(BOUND)(v), v, rtol=1e-6, atol=0)


def test_inside_the_bound_the_inverse_gives_the_weights_back() -> None:
    made, w = SatNL(BOUND), torch.linspace(-0.99 * BOUND, 0.99 * BOUND, 501)
    # atanh has slope 1 / (1 - 0.99^2) = 50 there, tanh the inverse: errors of a few roundings of v up to 2.
    torch.testing.assert_close(made(made.right_inverse(w)), w, rtol=0, atol=8 * ULP)


def test_weights_beyond_the_bound_start_just_inside() -> None:
    made = SatNL(BOUND)
    found = made(made.right_inverse(torch.tensor([BOUND, 3.0, -3.0])))
    assert found.tolist() == pytest.approx([0.995 * BOUND, 0.995 * BOUND, -0.995 * BOUND], rel=1e-5)
    assert torch.isfinite(made.right_inverse(torch.tensor([BOUND]))).all()


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Conv2d(6, 6, 3, groups=2),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(6, 4),
        )


def weight_of(module: nn.Module, name: str) -> torch.Tensor:
    layer = module.get_submodule(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return layer.weight


def test_layers_but_depthwise_ones_are_bounded_by_their_deviation() -> None:
    made = net()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    bounds = bound_weights(made, deviations=1.5)
    assert list(bounds) == ["0", "2", "5"]
    for name, bound in bounds.items():
        layer = made.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        first = before[f"{name}.weight"]
        assert bound == 1.5 * float(first.std())
        weight = layer.weight.detach()
        assert float(weight.abs().max()) <= bound
        inside = first.abs() <= 0.99 * bound
        assert inside.any() and not inside.all()
        torch.testing.assert_close(weight[inside], first[inside], rtol=0, atol=8 * ULP)
    assert not parametrize.is_parametrized(made.get_submodule("1"))


def test_what_is_learned_is_behind_the_bound() -> None:
    layer = nn.Linear(2, 2)
    bound_weights(layer, deviations=2.0)
    layer(torch.ones(1, 2)).sum().backward()
    learned = dict(layer.named_parameters())
    assert set(learned) == {"bias", "parametrizations.weight.original"}
    assert all(one.grad is not None for one in learned.values())
    bound = "parametrizations.weight.0.bound"
    assert bound in layer.state_dict(), "a checkpoint holds the bound"


def test_a_layer_of_zeros_has_no_bound() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.zero_()
    assert bound_weights(layer, deviations=2.0) == {}
    assert not parametrize.is_parametrized(layer)


def test_a_parametrised_weight_stays_as_it_is() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    names = list(layer.state_dict())
    assert bound_weights(layer, deviations=2.0) == {}
    assert list(layer.state_dict()) == names
