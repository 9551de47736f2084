"""The bound of neighbouring products while weights are trained: pairs that would break it are kept inside.

See mixport.arithmetic.neighbour_pairs. Held after every step, so that what is trained is what ships: a repair
at the end would move weights that nothing has adapted to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mixport.arithmetic.neighbour_pairs import forms_pairs
from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.pair_bound import PairBound

_ROUNDING = 1.0
"""Two codes of a pair may each round up by a half."""


@dataclass(frozen=True, kw_only=True)
class PairLimit:
    """What the pairs of one layer must keep, in codes.

    Attributes:
        up: largest sum of the positive weights of a pair.
        down: largest sum of the negative weights' magnitudes.
    """

    up: float
    down: float

    def hold(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Weights whose codes keep the bound: in a pair beyond it both are made smaller alike.

        Args:
            weight: float32 [O, C / groups, ...] or [O, K].
            scale: float32 [O].
        """
        rows = weight if weight.dim() <= 2 else weight.movedim(1, -1)
        shape = rows.shape
        flat = rows.reshape(len(rows), -1) / scale[:, None]
        count = flat.shape[1]
        pairs = functional.pad(flat, (0, count % 2)).view(len(flat), -1, 2)
        positive, negative = pairs.clamp_min(0), pairs.clamp_max(0)
        room_up = (self.up / positive.sum(-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        room_down = (self.down / negative.sum(-1, keepdim=True).neg().clamp_min(1e-12)).clamp_max(1.0)
        held = (positive * room_up + negative * room_down).view(len(flat), -1)[:, :count] * scale[:, None]
        beyond = ((room_up < 1.0) | (room_down < 1.0)).expand_as(pairs).reshape(len(flat), -1)[:, :count]
        kept = torch.where(beyond, held, rows.reshape(len(rows), -1)).view(shape)
        return kept if weight.dim() <= 2 else kept.movedim(-1, 1)


def pair_limit_of(
    shape: tuple[int, ...], *, largest_weight: int, groups: int, x: QuantParams, limit: int | None
) -> PairLimit | None:
    """The bound of a layer; None where no pair of its codes can break it.

    Args:
        shape: of the weight.
        largest_weight: largest magnitude of a code.
        groups: of a convolution.
        x: of the codes that it reads.
        limit: of the target's accumulator, None without one.
    """
    if limit is None or not forms_pairs(shape, groups=groups):
        return None
    bound = PairBound(largest_code=max(x.qmax, x.zero_point), limit=limit)
    if 2 * largest_weight <= min(bound.up, bound.down):
        return None
    return PairLimit(up=bound.up - _ROUNDING, down=bound.down - _ROUNDING)
