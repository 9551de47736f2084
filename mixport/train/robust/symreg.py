"""SymReg: weights are pulled to a distribution that is symmetric about 0 (arXiv 2208.00338, section 4.1).

The smallest weight is paired with the largest, the second smallest with the second largest, and so on; what a
pair sums to is penalised. The paper has pairs (1:1) and, to save time, pairs of two (2:2). Its equations were
not found; these are our reconstruction, and the absolute value is our choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pairing = Literal["1:1", "2:2"]


def symmetry_loss(weight: Tensor, order: Tensor, *, pairing: Pairing) -> Tensor:
    """Mean over pairs of |w(i) + w(N + 1 - i)|, w sorted; of 2:2 the sums of two and two.

    Args:
        weight: float32, any shape, N elements.
        order: int64 [N], positions of the weights in ascending order, be it of a few steps ago.
        pairing: 1:1 or 2:2.
    """
    ordered = weight.reshape(-1)[order]
    half = len(order) // 2
    if half == 0:
        return ordered.sum() * 0.0  # a weight alone has no partner
    sums = ordered[:half] + ordered[-half:].flip(0)
    if pairing == "2:2" and half >= 2:
        sums = sums[: half // 2 * 2].view(-1, 2).sum(1) / 2
    return sums.abs().mean()


class SortedWeights:
    """Orders of weights, sorted anew every few steps: most pairs stay as they are from one step to the next.

    Args:
        refresh: steps between two sorts of the same weight.
    """

    def __init__(self, *, refresh: int) -> None:
        self._refresh = refresh
        self._kept: dict[str, tuple[int, Tensor]] = {}
        self._step = 0

    def advance(self) -> None:
        """A step of training is done."""
        self._step += 1

    def order(self, name: str, weight: Tensor) -> Tensor:
        """Ascending order of the elements, int64 [N], at most `refresh` - 1 steps old."""
        found = self._kept.get(name)
        if found is None or self._step - found[0] >= self._refresh:
            found = (self._step, torch.argsort(weight.detach().reshape(-1)))
            self._kept[name] = found
        return found[1]
