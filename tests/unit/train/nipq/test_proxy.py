"""The noise proxy against the formula, differentiated by autograd in float64."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixport.train.nipq.proxy import channel_noise_proxy, noise_proxy

SHAPE = (3, 4, 5, 6)


def values(*shape: int, seed: int, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def noise_of(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) - 0.5


def formula(x: Tensor, low: Tensor, high: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    y = torch.where(x >= high, high.expand_as(x), x + step * noise)
    return torch.where(x <= low, low.expand_as(x), y)


def learned(value: float | Tensor, *, wide: bool = False) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float32).detach().clone(memory_format=torch.preserve_format)
    return (found.double() if wide else found).requires_grad_()


def check(x: Tensor, noise: Tensor, grad: Tensor, *, interval: float, step: float, below: float) -> None:
    """Value and all gradients of the proxy of a whole tensor are those of the formula."""
    leaves = learned(x), learned(interval), learned(step)
    got = noise_proxy(*leaves, noise, below=below)
    got.backward(grad)
    wide = learned(x, wide=True), learned(interval, wide=True), learned(step, wide=True)
    wanted = formula(wide[0], -below * wide[1], (1 - below) * wide[1], wide[2], noise.double())
    wanted.backward(grad.double())
    assert got.stride() == x.stride()
    # One rounding of each element.
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
    gradients = [one.grad for one in (*leaves, *wide)]
    assert gradients[0] is not None and gradients[3] is not None
    assert torch.equal(gradients[0].double(), gradients[3]), "to x it is the incoming one, or 0"
    for found, expected in zip(gradients[1:3], gradients[4:], strict=True):
        assert found is not None and expected is not None
        # Sums over 360 elements near 1 in float32; what is inside cancels.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
        assert abs(float(expected)) > 1e-2, "the case says something about this gradient"


@pytest.mark.parametrize("below", [0.25, 0.5, 0.6])
def test_values_and_gradients_are_those_of_the_formula(below: float) -> None:
    check(
        values(*SHAPE, seed=1), noise_of(*SHAPE), values(*SHAPE, seed=3), interval=1.7, step=0.2, below=below
    )


def test_behind_a_relu_only_the_upper_bound_moves() -> None:
    x = torch.relu(values(*SHAPE, seed=1))
    check(x, noise_of(*SHAPE), values(*SHAPE, seed=3), interval=0.9, step=0.3, below=0.0)


@pytest.mark.parametrize("same_order", [True, False])
def test_channels_last_is_the_same(same_order: bool) -> None:
    x, noise, grad = (
        one.contiguous(memory_format=torch.channels_last)
        for one in (values(*SHAPE, seed=1), noise_of(*SHAPE), values(*SHAPE, seed=3))
    )
    check(x, noise, grad if same_order else grad.contiguous(), interval=1.7, step=0.2, below=0.4)


def test_tokens_in_another_order_are_the_same() -> None:
    x = values(6, 5, 12, seed=1).transpose(1, 2)
    noise = noise_of(6, 5, 12).transpose(1, 2)
    check(x, noise, values(6, 12, 5, seed=3), interval=1.7, step=0.2, below=0.4)


def test_zeros_of_a_relu_and_values_at_the_bounds_stay() -> None:
    x = learned(torch.tensor([0.0, -0.0, 1.5, 0.75]))
    interval, step = learned(1.5), learned(0.5)
    y = noise_proxy(x, interval, step, torch.full((4,), 0.5), below=0.0)
    assert y.tolist() == [0.0, 0.0, 1.5, 1.0]
    y.backward(torch.tensor([3.0, 5.0, 7.0, 11.0]))
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.0, 11.0]
    assert interval.grad is not None and float(interval.grad) == 7.0, "of the value at the upper bound"
    assert step.grad is not None and float(step.grad) == 5.5


def test_gradients_that_nobody_wants_are_not_made() -> None:
    x, interval, step = learned(values(*SHAPE, seed=1)), torch.tensor(1.7), torch.tensor(0.2)
    noise_proxy(x, interval, step, noise_of(*SHAPE), below=0.5).sum().backward()
    assert interval.grad is None and step.grad is None and x.grad is not None


sizes = st.floats(min_value=2**-10, max_value=2**10, width=32)


@given(interval=sizes, share=st.floats(2**-8, 1.0), below=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_outputs_stay_within_half_a_step_of_the_interval(
    interval: float, share: float, below: float, seed: int
) -> None:
    step = torch.tensor(share * interval)
    x = values(64, seed=seed, spread=interval)
    y = noise_proxy(x, torch.tensor(interval), step, noise_of(64), below=below)
    low, high = (
        torch.tensor(bound, dtype=torch.float32) for bound in (-below * interval, (1 - below) * interval)
    )
    assert bool((y[x <= low] == low).all()) and bool((y[x >= high] == high).all())
    room = 0.5 * float(step) + 1e-6 * interval  # one rounding of a sum that is at most 1.5 intervals
    assert float(y.min()) >= float(low) - room and float(y.max()) <= float(high) + room


def test_each_channel_has_its_own_bound_and_step() -> None:
    shape = (5, 4, 3, 3)
    weight, grad, noise = values(*shape, seed=4), values(*shape, seed=5), noise_of(*shape)
    bound, step = torch.linspace(0.5, 1.5, 5), torch.linspace(0.1, 0.4, 5)
    leaves = learned(weight), learned(bound), learned(step)
    got = channel_noise_proxy(*leaves, noise)
    got.backward(grad)
    wide = learned(weight, wide=True), learned(bound, wide=True), learned(step, wide=True)
    limit, size = (one.view(-1, 1, 1, 1) for one in wide[1:])
    wanted = formula(wide[0], -limit, limit, size, noise.double())
    wanted.backward(grad.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)  # one rounding
    for found, expected in zip((one.grad for one in leaves), (one.grad for one in wide), strict=True):
        assert found is not None and expected is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)  # sums of 36 in float32
    # By hand for one channel: outside, the bound moves y with the sign of the weight.
    outside = weight[2].abs() >= 1.0
    by_hand = float((grad[2] * weight[2].sign())[outside].sum())
    assert leaves[1].grad is not None
    assert float(leaves[1].grad[2]) == pytest.approx(by_hand, abs=1e-5)


def test_weights_at_their_bound_stay() -> None:
    weight = torch.tensor([[1.0, -1.0, 2.0, -2.0, 0.0]])
    y = channel_noise_proxy(weight, torch.ones(1), torch.ones(1), torch.full((1, 5), 0.5))
    assert y.tolist() == [[1.0, -1.0, 1.0, -1.0, 0.5]]
