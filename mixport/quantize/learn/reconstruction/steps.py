"""Activation quantisers while they are learned: LSQ step sizes (arXiv 1902.08153), and QDrop (arXiv
2203.05740) on top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FakeQuantise(torch.autograd.Function):
    """Per-tensor fake quantisation with a learned step size; elements stay float where a mask says so.

    Only vectorised arithmetic: selections by boolean masks are ten times slower on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, keep: Tensor | None) -> Tensor:
        """Values of the codes in [low, high] (zero point taken off) next to x; x itself where `keep` is 0.

        Args:
            ctx: of autograd.
            x: float32, any shape.
            step: float32 scalar, positive.
            low: smallest code less the zero point.
            high: largest code less the zero point.
            keep: float32 of 0 and 1, of x's shape; None keeps all.
        """
        quantised = torch.div(x, step).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(x, step, quantised, keep)
        ctx.low, ctx.high = low, high
        return quantised if keep is None else torch.lerp(x, quantised, keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through inside the range; d/d step = (q - [inside] x) / step (LSQ, equation 3)."""
        (grad,) = grads
        x, step, quantised, keep = ctx.saved_tensors
        kept = grad if keep is None else grad * keep
        # half a step beyond the last code still rounds to it
        through = torch.ops.aten.hardtanh_backward(
            kept, x, float((ctx.low - 0.5) * step), float((ctx.high + 0.5) * step)
        )
        to_step = None
        if ctx.needs_input_grad[1]:
            to_step = (_dot(kept, quantised) - _dot(through, x)) / step
        to_x = through if keep is None else through + (grad - kept)
        return to_x, to_step, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() if a.stride() != b.stride() or not _dense(a) else torch.dot(_flat(a), _flat(b))


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Tensor:
    """The elements in the order of memory, without a copy."""
    return x.as_strided((x.numel(),), (1,))


_FEWEST_PLACES, _WINDOWS = 1 << 16, 1 << 16


class MaskPool:
    """Random masks drawn once: a mask is a window of a long row of zeros and ones, at a random place.

    Drawing half a million random numbers an iteration would cost as much as a convolution. The row is a
    quarter longer than the largest mask, and at least 65,536 longer: there are so many places, and two masks
    give an element the same number of the row only where they take the same place.
    """

    def __init__(
        self, probability: float, *, largest: int, generator: torch.Generator, device: torch.device
    ) -> None:
        places = max(largest // 4, _FEWEST_PLACES)
        self._bits = (torch.rand(largest + places - 1, generator=generator) < probability).to(
            device, torch.float32
        )
        self._offsets = [int(offset) for offset in torch.randint(0, places, (_WINDOWS,), generator=generator)]
        self._next = 0

    @property
    def elements(self) -> int:
        """Of the row that is kept, float32."""
        return self._bits.numel()

    def like(self, x: Tensor) -> Tensor:
        """A mask of x's shape and memory order."""
        offset = self._offsets[self._next % len(self._offsets)]
        self._next += 1
        window = self._bits[offset : offset + x.numel()]
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            n, c, h, w = x.shape
            return window.view(n, h, w, c).permute(0, 3, 1, 2)
        return window.view(x.shape)
