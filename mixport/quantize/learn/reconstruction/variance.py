"""What learning on noisy inputs takes from a linear output, given back: its variance.

The output of least squared error leans towards its mean by as much as what it is computed from is noise
(errors in variables): a relative error of 0.28 leaves a standard deviation of 0.85. An affine layer behind it
could undo that, but what comes is a layer whose Relu cuts what is below a threshold, and with it what has
shrunk to below it. So where a unit ends in a layer, without a sum or a Relu behind it, the layer's scales are
multiplied until its output varies as the float one does. Only scales and bias move: no code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.loop.activation_store import slices
from mixport.quantize.learn.reconstruction.optimise import UnitData
from mixport.quantize.learn.units.execute import Executor, Quantised
from mixport.quantize.learn.units.units import Unit

_LARGEST_GAIN = 1.5
"""What has lost more than half of its variance is too far from the float output to be told noise from
signal.
"""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of a unit's output, over all images and places.

    Attributes:
        mean: float64 [C].
        float_mean: of the float output, float64 [C].
        gain: root of the float output's variance over that of the quantised one, all channels together; at
            least 1, at most 1.5.
    """

    mean: Tensor
    float_mean: Tensor
    gain: float


def spread_of(
    executor: Executor, unit: Unit, data: UnitData, state: Quantised, *, batch: int, channel_axis: int
) -> Spread:
    """How much less the quantised output varies than the float one.

    Args:
        executor: of the graph.
        unit: which.
        data: its inputs and targets.
        state: its quantisers and integers.
        batch: images at once.
        channel_axis: of its output.
    """
    own, wanted = _Sums(), _Sums()
    with torch.no_grad():
        for part in slices(len(data.target), batch):
            got = executor.run(
                unit, data.quantised_input.at(part), images=part.stop - part.start, quantised=state
            )
            own.add(got, channel_axis)
            wanted.add(data.target.at(part), channel_axis)
    shrunk = 0.0 < own.variance < wanted.variance
    gain = min(math.sqrt(wanted.variance / own.variance), _LARGEST_GAIN) if shrunk else 1.0
    return Spread(mean=own.mean, float_mean=wanted.mean, gain=gain)


class _Sums:
    """Of values that come in parts, in float64."""

    def __init__(self) -> None:
        self._places, self._total, self._squares = 0, torch.zeros((), dtype=torch.float64), 0.0

    def add(self, values: Tensor, channel_axis: int) -> None:
        """Values of some images."""
        rows = values.movedim(channel_axis, -1).reshape(-1, values.shape[channel_axis]).double()
        self._places += len(rows)
        self._total = self._total + rows.sum(0).cpu()
        self._squares += float(rows.square().sum())

    @property
    def mean(self) -> Tensor:
        """Of each channel, float64 [C]."""
        return self._total / max(self._places, 1)

    @property
    def variance(self) -> float:
        """Summed over channels."""
        return self._squares / max(self._places, 1) - float(self.mean.square().sum())


def widened(integers: LayerIntegers, spread: Spread) -> LayerIntegers:
    """The layer that gives this output, about the float output's mean and `gain` times as wide; without a
    bias, about 0.
    """
    scales = (integers.scales * np.float32(spread.gain)).astype(np.float32)
    if integers.bias is None:
        return replace(integers, scales=scales)
    moved = spread.float_mean.numpy() + spread.gain * (integers.bias.astype(np.float64) - spread.mean.numpy())
    return replace(integers, scales=scales, bias=moved.astype(np.float32))
