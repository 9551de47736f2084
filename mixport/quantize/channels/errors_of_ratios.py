"""What convolutions make of a tensor whose channels are divided by ratios, both operands rounded: which
ratios serve them best.

Larger codes for small channels make the tensor better and the weights behind worse, whose columns then
differ. By how much depends on how their rounding is chosen. Rounded to nearest, errors of weights add up to
an offset, since what they read is positive; learned, they are a fraction of that, and the bias takes up the
mean. Judged as nearest ones, weights would seem to pay more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixport.quantize.channels.one_range import rounded, rounded_weight
from mixport.quantize.integers.coordinate_descent import least_squares_codes
from mixport.quantize.scales.ranges import ScaleRule, weight_scales

Array = NDArray[np.float64]
Bounds = tuple[float, float | None] | None

_NEAREST_ROWS, _OUTPUTS = 2048, 32
"""Places of the tensor and output channels of a layer on which ratios are compared."""
_LEARNED_ROWS, _ROWS_A_CHANNEL = 8192, 4
"""With learned rounding: half of them for the covariance, half to judge."""
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A convolution that reads the tensor.

    Attributes:
        weight: of some of its output channels, float32 [groups, outputs, inputs, taps].
        bits: of its codes.
    """

    weight: Tensor
    bits: int

    @classmethod
    def of(cls, weight: Tensor, *, groups: int, bits: int) -> Reader:
        """Of a convolution's whole weight, [O, I, ...]."""
        outputs, inputs = weight.shape[0] // groups, weight.shape[1]
        by_group = weight.reshape(groups, outputs, inputs, -1)
        return cls(weight=by_group[:, :: max(1, outputs // _OUTPUTS)], bits=bits)


def rows_wanted(channels: int, *, values: int, learned: bool) -> int:
    """Places to draw of a tensor for its channels' ranges (`values` in all) and for errors."""
    least = max(_LEARNED_ROWS, _ROWS_A_CHANNEL * channels) if learned else _NEAREST_ROWS
    return max(least, values // channels)


def nearest_error(
    rows: Tensor, ratio: Array, readers: Sequence[Reader], *, bits: int, bounds: Bounds, rule: ScaleRule
) -> float:
    """Relative squared error of what the layers make of the tensor, both operands rounded to nearest.

    Args:
        rows: places of the tensor, float32 [N, C].
        ratio: that its channels are divided by, and the weights multiplied by, float64 [C].
        readers: the layers.
        bits: of the tensor's codes.
        bounds: of the clamp in front of the codes.
        rule: of the target, for activation scales.
    """
    rows = rows[:: max(1, len(rows) // _NEAREST_ROWS)]
    x, factor = _codes(rows, ratio, bits=bits, bounds=bounds, rule=rule)
    wrong = total = 0.0
    for reader in readers:
        scaled = _scaled(reader, factor)
        groups, outputs, _, _ = scaled.shape
        got = torch.as_tensor(
            rounded_weight(scaled.reshape(groups * outputs, -1).numpy(), bits=reader.bits)
        ).view(scaled.shape)
        exact = _outputs(rows, reader.weight)
        wrong += float((exact - _outputs(x, got)).double().square().mean())
        total += float(exact.double().square().mean())
    return wrong / total if total > 0 else wrong


def learned_error(
    rows: Tensor, ratio: Array, readers: Sequence[Reader], *, bits: int, bounds: Bounds, rule: ScaleRule
) -> float:
    """The same about the mean, with codes of the weights of least squared error (`coordinate_descent`, one
    sweep), on other places.

    Taps are taken for independent of each other.
    """
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    rows = rows[: max(_LEARNED_ROWS, _ROWS_A_CHANNEL * rows.shape[1])]
    x, factor = _codes(rows, ratio, bits=bits, bounds=bounds, rule=rule)
    middle = max(1, len(rows) // 2)
    seen, judged, exact_rows = x[:middle], x[middle:], rows[middle:]
    if not len(judged):
        seen, judged, exact_rows = x, x, rows
    wrong = total = 0.0
    for reader in readers:
        got = _least_squares(_scaled(reader, factor), seen, bits=reader.bits)
        exact = _outputs(exact_rows, reader.weight)
        wrong += float(_variance(exact - _outputs(judged, got)))
        total += float(_variance(exact))
    return wrong / max(total, _TINY)


def _least_squares(weight: Tensor, x: Tensor, *, bits: int) -> Tensor:
    """Rounded weights [G, O, I, T] for inputs x [N, G * I]; every tap by itself, under the scale of its
    output channel.
    """
    groups, outputs, inputs, taps = weight.shape
    by_group = (x - x.mean(0)).double().view(len(x), groups, inputs).movedim(0, 1)
    covariance = by_group.mT @ by_group / len(x)
    scales = torch.as_tensor(
        weight_scales(weight.reshape(groups * outputs, -1).numpy(), bits=bits)[0]
    ).double()
    of_taps = scales.view(groups, outputs, 1).expand(groups, outputs, taps).reshape(groups, outputs * taps)
    flat = weight.movedim(3, 2).reshape(groups, outputs * taps, inputs).double()
    codes, _ = least_squares_codes(flat, covariance, of_taps, bits=bits, sweeps=1)
    return (codes * of_taps[..., None]).float().view(groups, outputs, taps, inputs).movedim(2, 3)


def _codes(
    rows: Tensor, ratio: Array, *, bits: int, bounds: Bounds, rule: ScaleRule
) -> tuple[Tensor, Tensor]:
    """The divided tensor as its codes have it, and the ratio in float32."""
    factor = torch.as_tensor(ratio, dtype=torch.float32)
    upper = None if bounds is None else bounds[1]
    divided = (rows / factor).clamp_max(torch.inf if upper is None else upper)
    return torch.as_tensor(rounded(divided.numpy(), bits=bits, rule=rule, bounds=bounds)), factor


def _scaled(reader: Reader, factor: Tensor) -> Tensor:
    groups, _, inputs, _ = reader.weight.shape
    return reader.weight * factor.view(groups, 1, inputs, 1)


def _outputs(rows: Tensor, weight: Tensor) -> Tensor:
    """[N, groups, outputs, taps]: what each tap adds."""
    groups, _, inputs, _ = weight.shape
    return torch.einsum("ngi,goit->ngot", rows.view(-1, groups, inputs), weight)


def _variance(values: Tensor) -> Tensor:
    """About the mean over places, averaged over the rest."""
    return (values - values.mean(0)).double().square().mean()
