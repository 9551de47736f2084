"""A rotation of channels learned so that codes cost least: what is left free once the metric of a basis is
chosen (`channel_basis`).

Every rotation of whitened channels has the same noise in the middle of its codes. They differ in what lies
beyond the last code, and so in how fine the codes may be: a channel in which rare large values gather needs a
coarse step, or loses them. Which rotation spreads them best is learned, as in SpinQuant (arXiv 2405.16406),
on the manifold by Cayley's map; not by the loss of the model, but by the noise of the tensor's own codes as
the outputs see it, which takes seconds.
"""

# torch leaves some signatures of tensors and optimisers without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_STEPS, _BATCH = 240, 1024
_RATE = 0.04
"""Adam's, over the root of the channels: so many angles turn each channel."""
_LOOKS = 12
"""How often places that are not learned from are asked whether it is still getting better."""
_SHRINKS = np.geomspace(1.0, 0.15, 32)


@dataclass(frozen=True, kw_only=True)
class Places:
    """One tensor in its basis.

    Attributes:
        learned: places to learn from, float32 [N, C], their mean taken off where it will be.
        judged: others, of other images, float32 [M, C].
        fisher: what the outputs make of an error of the channels, float64 [C, C].
        bits: width of the codes.
    """

    learned: Tensor
    judged: Tensor
    fisher: Array
    bits: int


def learn_rotation(tensors: Sequence[Places]) -> Array:
    """The rotation R, float64 [C, C], with the least noise of codes of R x, summed over tensors that must
    share it.

    Steps of the codes are learned beside it. Rounding inside the codes' range is noise that no rotation
    moves; what is cut off beyond it has a gradient. Places of images that are not learned from say when to
    stop; 1 where nothing is better for them.
    """
    channels = tensors[0].learned.shape[1]
    largest = max(float(np.trace(one.fisher)) for one in tensors)
    if not largest > 0:
        return np.eye(channels)
    # By a power of two, so that float32 holds it and nothing is rounded.
    fishers = [
        torch.as_tensor(one.fisher / 2.0 ** math.frexp(largest)[1], dtype=torch.float32) for one in tensors
    ]
    logs = torch.tensor([math.log(_best_step(one)) for one in tensors], requires_grad=True)
    free = torch.zeros(channels, channels, requires_grad=True)
    rate = _RATE / math.sqrt(channels)
    optimizer = torch.optim.Adam([free, logs], lr=rate)
    draws = torch.Generator().manual_seed(0)

    def noise(rotation: Tensor, places: Sequence[Tensor]) -> Tensor:
        parts = [
            _noise(part @ rotation.T, logs[index].exp(), rotation @ fisher @ rotation.T, bits=one.bits)
            for index, (one, part, fisher) in enumerate(zip(tensors, places, fishers, strict=True))
        ]
        return torch.stack(parts).sum()

    judged = [one.judged for one in tensors]
    with torch.no_grad():
        best, least = torch.eye(channels), float(noise(torch.eye(channels), judged))
    unit = max(least, torch.finfo(torch.float32).tiny)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / _STEPS))
        batch = [
            one.learned[torch.randint(0, len(one.learned), (_BATCH,), generator=draws)] for one in tensors
        ]
        loss = noise(_cayley(free), batch) / unit
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % (_STEPS // _LOOKS) == 0:
            with torch.no_grad():
                rotation = _cayley(free)
                now = float(noise(rotation, judged))
            if now < least:
                best, least = rotation, now
    return _orthogonal(best)


def _noise(values: Tensor, step: Tensor, fisher: Tensor, *, bits: int) -> Tensor:
    """Mean over places of e' F e, e the error of codes around 0."""
    half = 2 ** (bits - 1)
    scaled = values / step
    codes = scaled.round().clamp(-half, half - 1)
    inside = (scaled > -half - 0.5) & (scaled < half - 0.5)
    wrong = (codes - torch.where(inside, scaled.detach(), scaled)) * step
    return ((wrong @ fisher) * wrong).sum() / len(values)


def _best_step(one: Places) -> float:
    """Step of least squared error before anything is turned."""
    half, top = 2 ** (one.bits - 1), float(one.learned.abs().max())
    steps = [max(top, torch.finfo(torch.float32).tiny) * shrink / half for shrink in _SHRINKS]

    def error(step: float) -> float:
        codes = (one.learned / step).round().clamp(-half, half - 1)
        return float((codes * step - one.learned).square().sum())

    return min(steps, key=error)


def _cayley(free: Tensor) -> Tensor:
    """(1 - S)^-1 (1 + S) of the antisymmetric part: a rotation for any values."""
    half = (free - free.T) / 2
    one = torch.eye(len(free))
    return torch.inverse(one - half) @ (one + half)


def _orthogonal(rotation: Tensor) -> Array:
    """Float32's rounding taken off."""
    matrix: Array = rotation.double().numpy()
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right, np.float64)
