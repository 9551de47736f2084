"""A layer's weight and bias while its unit runs: the float values that the integers to ship stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """One layer with its weight fake-quantised and its bias not yet rounded.

    Attributes:
        weight: float32 [O, ...], codes times scales.
        scales: float32 [O], positive.
        bias: float32 [O], None without one.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def shipped(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they ship behind codes of this step size, a float32 scalar."""
        return self.weight, None if self.bias is None else RoundedBias.apply(self.bias, step * self.scales)


class RoundedBias(torch.autograd.Function):
    """A bias rounded to multiples of float32(step * scale), as `mixport.arithmetic.integer.quantise_bias`
    rounds it, straight through.
    """

    @staticmethod
    def forward(ctx: Any, bias: Tensor, scale: Tensor) -> Tensor:
        """Both float32 [O]; the quotient is taken in float64, so that the code is the nearest one."""
        return torch.round(bias.double() / scale.double()).float() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """d/d bias = 1. The scale gets none: that of its rounding error, as LSQ has it for steps, did not
        help on small modules.
        """
        return grads[0], None
