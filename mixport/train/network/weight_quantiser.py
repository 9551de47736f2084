"""Weights behind a real quantiser while they are trained: LSQ (arXiv 1902.08153) with a scale a channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class QuantisedWeight(torch.autograd.Function):
    """Symmetric fake quantisation with a learned scale for each output channel, straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """Values of the nearest codes.

        Args:
            ctx: of autograd.
            weight: float32 [O, ...].
            scale: float32 [O], positive.
            low: smallest code.
            high: largest code.
        """
        wide = scale.view(-1, *[1] * (weight.dim() - 1))
        ratio = weight / wide
        codes = torch.round(ratio).clamp_(low, high)
        ctx.save_for_backward(ratio, codes, wide)
        ctx.low, ctx.high = low, high
        return codes * wide

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through up to half a step beyond the last code; d/d scale = q - [inside] w / scale (LSQ,
        equation 3).
        """
        (grad,) = grads
        ratio, codes, _ = ctx.saved_tensors
        through = torch.ops.aten.hardtanh_backward(grad, ratio, ctx.low - 0.5, ctx.high + 0.5)
        to_scale = (grad * codes - through * ratio).flatten(1).sum(1) if ctx.needs_input_grad[1] else None
        return through, to_scale, None, None
