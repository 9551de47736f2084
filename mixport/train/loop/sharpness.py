"""Sharpness-aware minimisation: SAM (arXiv 2010.01412) and ASAM (arXiv 2102.11600)."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_ETA = 0.01
"""Added to the size of a weight, so that zeros have a neighbourhood too (ASAM, section 4)."""


class SharpnessAware:
    """Takes the gradient not where the weights are but where the loss is largest nearby.

    Args:
        parameters: that are moved; biases and scales too, as in SAM.
        rho: radius of the neighbourhood.
        adaptive: the radius of each weight is in units of its size (ASAM).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, rho: float, adaptive: bool) -> None:
        self._parameters, self._rho, self._adaptive = list(parameters), rho, adaptive

    def __call__(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients of the neighbourhood's worst point; the parameters themselves stay.

        Args:
            closure: clears gradients, computes the loss and its gradients, and gives the loss.

        Returns:
            loss at the parameters themselves.
        """
        loss = closure()
        with torch.no_grad():
            moves = self._moves()
            # Taking a move away again would round: weights would drift.
            homes = [parameter.detach().clone() for parameter, _ in moves]
            for parameter, move in moves:
                parameter.add_(move)
        closure()
        with torch.no_grad():
            for (parameter, _), home in zip(moves, homes, strict=True):
                parameter.copy_(home)
        return loss

    def _moves(self) -> list[tuple[nn.Parameter, Tensor]]:
        found = [one for one in self._parameters if one.grad is not None]
        sizes = [one.abs() + _ETA if self._adaptive else torch.ones_like(one) for one in found]
        scaled = [one.grad * size for one, size in zip(found, sizes, strict=True) if one.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in scaled]))
        factor = self._rho / (norm + 1e-12)
        return [(one, move * size * factor) for one, move, size in zip(found, scaled, sizes, strict=True)]
