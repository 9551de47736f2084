"""Widths that are learned: NIPQ's parametrisation, held to what the target allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LEAST, _SPAN = 2.0, 12.0
"""bits = 2 + 12 sigmoid(raw), so that a width lies in (2, 14) (NIPQ's released code)."""
_MARGIN = 1 / 64
"""How far from the open end at 2 bits a width is held: nearer, the sigmoid has no slope to come back by."""


class LearnedWidths(nn.Module):
    """Widths of all sites of one kind, weights or activations.

    Args:
        first: bits to start from, one for each site.
        allowed: bits that the target has.
        fixed: sites whose width does not move.

    Attributes:
        raw: what is learned, float32 [sites].
        held: steps at whose end a width wanted to leave its range, int64 [sites].
    """

    held: Tensor
    fixed: Tensor
    exact: Tensor

    def __init__(self, first: Sequence[float], *, allowed: Sequence[int], fixed: Sequence[bool]) -> None:
        super().__init__()
        self.low = max(float(min(allowed)), _LEAST + _MARGIN)
        self.high = min(float(max(allowed)), _LEAST + _SPAN - _MARGIN)
        start = torch.tensor([min(max(bits, self.low), self.high) for bits in first])
        exact = torch.tensor([float(bits) for bits in first])
        self.raw = nn.Parameter(_raw(start))
        self.register_buffer("fixed", torch.tensor(list(fixed), dtype=torch.bool))
        self.register_buffer("exact", exact)
        self.register_buffer("held", torch.zeros(len(first), dtype=torch.int64))

    def bits(self) -> Tensor:
        """Continuous widths, float32 [sites]; fixed ones are the whole numbers they were given."""
        return torch.where(self.fixed, self.exact, _LEAST + _SPAN * torch.sigmoid(self.raw))

    def values(self) -> tuple[float, ...]:
        """The same as plain numbers."""
        return tuple(float(bits) for bits in self.bits().detach())

    def steps_held(self) -> tuple[int, ...]:
        """`held` as plain numbers."""
        return tuple(int(steps) for steps in self.held)

    def rounded(self) -> Tensor:
        """Widths next to the learned ones, straight through."""
        return _straight(self.bits(), torch.round(self.bits().detach()))

    def sampled(self, generator: torch.Generator) -> Tensor:
        """Stochastic rounding of the widths: round(bits + u), u uniform in [-0.5, 0.5], straight through
        (NIPQ, section 3.3). They stay between the least and the most bits.
        """
        bits = self.bits()
        shift = (torch.rand(len(bits), generator=generator) - 0.5).to(bits.device)
        drawn = torch.round(bits.detach() + torch.where(self.fixed, 0.0, shift))
        low, high = math.floor(self.low), math.ceil(self.high)
        return _straight(bits, torch.where(self.fixed, self.exact, drawn.clamp(low, high)))

    def hold(self) -> None:
        """Bring widths that left the allowed range back to its end, and count them; after a step."""
        with torch.no_grad():
            ends = _raw(torch.tensor([self.low, self.high])).to(self.raw.device)
            inside = self.raw.clamp(ends[0], ends[1])
            self.held += (inside != self.raw) & ~self.fixed
            self.raw.copy_(inside)


def _raw(bits: Tensor) -> Tensor:
    share = (bits - _LEAST) / _SPAN
    return torch.log(share / (1.0 - share))


def _straight(values: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` with the gradient of `values`."""
    return rounded + (values - values.detach())
