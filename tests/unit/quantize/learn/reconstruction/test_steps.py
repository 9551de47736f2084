"""Fake quantisation with learned steps against a slow reference in float64; masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixport.quantize.learn.reconstruction.steps import FakeQuantise, MaskPool


def reference(
    x: Tensor, step: float, low: int, high: int, keep: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Value and gradients, element by element in float64: straight through inside, d/d step = q / step -
    [inside] x / step.
    """
    value, to_x, to_step = torch.empty(x.numel()), torch.empty(x.numel()), 0.0
    for index, (v, k, g) in enumerate(
        zip(x.flatten().double(), keep.flatten().double(), grad.flatten().double(), strict=True)
    ):
        code = min(max(round(float(v) / step), low), high)
        inside = (low - 0.5) * step < float(v) < (high + 0.5) * step
        value[index] = k * code * step + (1 - k) * v
        to_x[index] = g * (k * inside + (1 - k))
        to_step += float(g * k) * (code - (float(v) / step if inside else 0.0))
    return value.view(x.shape), to_x.view(x.shape), to_step


def check(x: Tensor, *, step: float, low: int, high: int, keep: Tensor | None = None) -> None:
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    learned = torch.tensor(step, requires_grad=True)
    got = FakeQuantise.apply(x, learned, low, high, keep)
    got.backward(grad)
    value, to_x, to_step = reference(
        x.detach(), float(torch.tensor(step)), low, high, torch.ones(x.shape) if keep is None else keep, grad
    )
    torch.testing.assert_close(got.detach(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, to_x, rtol=1e-6, atol=1e-6)
    assert float(learned.grad) == pytest.approx(to_step, rel=1e-4, abs=1e-4)


def values(*shape: int, spread: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * spread


@pytest.mark.parametrize(("low", "high"), [(0, 3), (-2, 13), (-8, 7)])
@pytest.mark.parametrize("spread", [0.5, 5.0])
def test_values_and_gradients_are_those_of_the_reference(low: int, high: int, spread: float) -> None:
    check(values(4, 33, spread=spread), step=0.37, low=low, high=high)


def test_masks_let_values_and_gradients_through() -> None:
    keep = (torch.rand(4, 33, generator=torch.Generator().manual_seed(4)) < 0.5).float()
    check(values(4, 33), step=0.37, low=-3, high=4, keep=keep)


def test_channels_last_and_strided_values() -> None:
    keep = (torch.rand(2, 5, 4, 3, generator=torch.Generator().manual_seed(4)) < 0.5).float()
    x = values(2, 5, 4, 3).contiguous(memory_format=torch.channels_last)
    check(x, step=0.37, low=-3, high=4)
    check(x, step=0.37, low=-3, high=4, keep=keep)  # the mask's memory order is another one
    check(x, step=0.37, low=-3, high=4, keep=keep.contiguous(memory_format=torch.channels_last))
    check(values(6, 8)[:, ::2], step=0.37, low=-3, high=4)


def test_ties_round_to_even_and_the_last_half_step_is_inside() -> None:
    x = torch.tensor([-1.25, -1.0, -0.25, 0.25, 0.75, 1.0, 1.2499, 1.2501, 9.0], requires_grad=True)
    got = FakeQuantise.apply(x, torch.tensor(0.5), -2, 2, None)
    got.sum().backward()
    assert got.tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_a_fixed_step_gets_no_gradient() -> None:
    x, step = torch.tensor([-1.3, -1.2, 0.3, 1.2, 1.3], requires_grad=True), torch.tensor(0.5)
    FakeQuantise.apply(x, step, -2, 2, None).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert step.grad is None


def test_masks_have_the_probability_the_shape_and_the_order_of_the_tensor() -> None:
    pool = MaskPool(
        0.25, largest=20_000, generator=torch.Generator().manual_seed(1), device=torch.device("cpu")
    )
    x = torch.empty(10, 20, 10, 10).contiguous(memory_format=torch.channels_last)
    first, second = pool.like(x), pool.like(x)
    assert first.shape == x.shape
    assert first.stride() == x.stride()
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert float(first.mean()) == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(first, second)
    assert pool.like(torch.empty(7, 3)).is_contiguous()


@pytest.mark.parametrize("largest", [100, 1_000_000])
def test_masks_of_several_tensors_and_steps_are_as_good_as_independent(largest: int) -> None:
    pool = MaskPool(
        0.5, largest=largest, generator=torch.Generator().manual_seed(1), device=torch.device("cpu")
    )
    assert pool.elements <= 1.25 * largest + (1 << 16)
    masks = torch.stack([pool.like(torch.empty(100)) for _ in range(2000)])
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.01)
    assert float((masks.mean(0) - 0.5).abs().max()) < 0.06, (
        "every element is dropped as often as any other: 0.011 is one deviation"
    )
    apart = torch.corrcoef(masks.T)[~torch.eye(100, dtype=torch.bool)]
    assert float(apart.abs().max()) < 0.12, "no two elements hang together"
    after = (masks[1:] * 2 - 1) * (masks[:-1] * 2 - 1)
    assert float(after.mean().abs()) < 0.02, "nor a mask and the next"
