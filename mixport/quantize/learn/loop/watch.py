"""Watches a loop of optimiser steps: tells how far it is, and ends it where the loss breaks down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mixport.quantize.gradients import NotLearnedError

_EVERY = 20


class Watch:
    """Of one loop.

    Args:
        steps: in all.
        advance: is told the number of steps just done, and the latest loss, every 20 steps and at the end.
    """

    def __init__(self, steps: int, advance: Callable[[int, float], None]) -> None:
        self._steps, self._advance = steps, advance
        self._pending = 0

    def see(self, step: int, loss: Tensor) -> None:
        """The loss of a step, counted from 0. Raises NotLearnedError where it is no finite number."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotLearnedError(f"loss {value} at step {step + 1}")
        self._pending += 1
        if self._pending == _EVERY or step + 1 == self._steps:
            self._advance(self._pending, value)
            self._pending = 0

    def end(self, learned: Iterable[Tensor]) -> None:
        """What was learned. Raises NotLearnedError where a number in it is not finite."""
        if not all(bool(torch.isfinite(value).all()) for value in learned):
            raise NotLearnedError(f"what was learned is not finite after step {self._steps}")
