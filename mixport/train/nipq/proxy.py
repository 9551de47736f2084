"""The noise proxy of a quantiser (NIPQ, arXiv 2206.00820, section 3): inside the interval noise of the size
of the rounding error, outside the bound itself.

Rounding has no gradient; noise of the same distribution has one, for the values, the interval and the width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def noise_proxy(x: Tensor, interval: Tensor, step: Tensor, noise: Tensor, *, below: float) -> Tensor:
    """x with noise instead of rounding, one interval for the whole tensor.

    y = x + step * noise inside, the bound outside. Gradients: to x 1 inside and 0 outside, to the interval
    what its bounds move by outside, to the step the noise (NIPQ, equations 5 to 8).

    Args:
        x: float32, any shape.
        interval: float32 scalar, positive: length from the lower to the upper bound.
        step: float32 scalar, positive: of the grid.
        noise: of x's shape and memory order, in units of the step, in [-0.5, 0.5]; has no gradient.
        below: share of the interval below 0, in [0, 1].
    """
    return _TensorProxy.apply(x, interval, step, noise, below)  # type: ignore[no-any-return]


class _TensorProxy(torch.autograd.Function):
    """Few passes over memory: an activation tensor is larger than every cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, interval: Tensor, step: Tensor, noise: Tensor, below: float) -> Tensor:
        low, high = -below * float(interval), (1.0 - below) * float(interval)
        inside = torch.ops.aten.hardtanh_backward(noise, x, low, high)  # noise where low < x < high, else 0
        y = torch.clamp(x, low, high).add_(inside, alpha=float(step))
        ctx.save_for_backward(x, y, inside, interval)
        ctx.below = below
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, y, inside, interval = ctx.saved_tensors
        low, high = -ctx.below * float(interval), (1.0 - ctx.below) * float(interval)
        to_x = torch.ops.aten.hardtanh_backward(grad, x, low, high)
        to_interval = to_step = None
        if ctx.needs_input_grad[1]:
            # Outside, y is the bound: low = -below * interval, high = (1 - below) * interval.
            to_interval = (_dot(grad, y) - _dot(to_x, y)) / interval
        if ctx.needs_input_grad[2]:
            to_step = _dot(grad, inside)
        return to_x, to_interval, to_step, None, None


def channel_noise_proxy(x: Tensor, bound: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    """The same with a symmetric interval for each slice of the first axis: for weights.

    Args:
        x: float32 [O, ...].
        bound: float32 [O], positive; the interval is [-bound, bound].
        step: float32 [O], positive.
        noise: of x's shape, in units of the step.
    """
    wide = (-1, *[1] * (x.dim() - 1))
    limit = bound.view(wide)
    noisy = x + noise * step.view(wide)
    inside = torch.where(x >= limit, limit, noisy)
    return torch.where(x <= -limit, -limit, inside)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    same = a.stride() == b.stride() and (
        a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.dot(_flat(a), _flat(b)) if same else (a * b).sum()


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))
