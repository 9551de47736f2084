"""What the noise proxy adds: uniform noise, or noise with the distribution of the true rounding error."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NoiseKind = Literal["histogram", "uniform"]

_BINS = 256
"""Of the histogram over [-0.5, 0.5] (NIPQ's released code)."""
_QUANTILES = 4096
"""Values of the inverse distribution that are drawn from: 16 a bin."""
_SAMPLE = 1 << 16
"""Elements that a histogram is taken of: 256 a bin on average."""
_FEWEST_PLACES, _WINDOWS = 1 << 16, 1 << 16


class NoisePool:
    """Random numbers drawn once: noise of a tensor is a window of a long row, at a random place.

    Drawing 24 million numbers a step would cost as much as the convolutions. The row is a quarter longer than
    the largest tensor, and at least 65,536 longer.

    Args:
        largest: elements of the largest tensor.
        generator: of row and places.
        device: where the noise is used.
    """

    def __init__(self, *, largest: int, generator: torch.Generator, device: torch.device) -> None:
        places = max(largest // 4, _FEWEST_PLACES)
        uniform = torch.rand(largest + places, generator=generator)
        self._uniform = (uniform - 0.5).to(device)
        self._index = (uniform * _QUANTILES).to(torch.int32).clamp_(max=_QUANTILES - 1).to(device)
        self._offsets = [int(one) for one in torch.randint(0, places, (_WINDOWS,), generator=generator)]
        self._next = 0

    def uniform(self, x: Tensor) -> Tensor:
        """Noise in [-0.5, 0.5), of x's shape and memory order."""
        return _shaped(self._window(self._uniform, x), x)

    def drawn(self, x: Tensor, quantiles: Tensor) -> Tensor:
        """Noise of the distribution whose quantiles these are (float32 [4096]), of x's shape and memory
        order.
        """
        return _shaped(torch.index_select(quantiles, 0, self._window(self._index, x)), x)

    def _window(self, row: Tensor, x: Tensor) -> Tensor:
        offset = self._offsets[self._next % _WINDOWS]
        self._next += 1
        return row[offset : offset + x.numel()]


def error_quantiles(x: Tensor, *, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
    """Quantiles of the rounding error in units of the step, float32 [4096], of the elements that are not
    truncated; uniform ones where none is.

    The histogram has 256 bins and is uniform inside a bin, as in NIPQ's released code; it is taken of 65,536
    elements at even distances.

    Args:
        x: float32, any shape.
        low: lower bound, a multiple of the step; of a shape that broadcasts to x.
        high: upper bound.
        step: of the grid.
    """
    with torch.no_grad():
        wide = [bound.expand_as(x).reshape(-1) if bound.dim() else bound for bound in (low, high, step)]
        stride = max(1, x.numel() // _SAMPLE)
        sample = x.reshape(-1)[::stride]
        low, high, step = (bound[::stride] if bound.dim() else bound for bound in wide)
        scaled = sample / step
        error = (torch.round(scaled) - scaled)[(sample > low) & (sample < high)]
        counts = torch.histc(error.float().cpu(), bins=_BINS, min=-0.5, max=0.5)
        if float(counts.sum()) == 0.0:
            counts = torch.ones(_BINS)
        share = torch.cumsum(counts.double(), 0) / counts.double().sum()
        edges = torch.linspace(-0.5, 0.5, _BINS + 1, dtype=torch.float64)
        wanted = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
        found = torch.searchsorted(share, wanted).clamp_(max=_BINS - 1)
        before = torch.cat([share.new_zeros(1), share])[found]
        inside = (wanted - before) / (share[found] - before)
        return (edges[found] + inside / _BINS).float().to(x.device)


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        n, c, h, w = x.shape
        return values.view(n, h, w, c).permute(0, 3, 1, 2)
    return values.view(x.shape)
