"""Bounds on integer sums that hold for every input, from the weights and code ranges themselves.

Two questions per layer (numerics: float32(acc) is exact up to 2^24; kernels accumulate in int32):

- can a sum leave int32, on the way there too: of stored codes, before the zero point is subtracted?
- can a sum leave the range in which float32 holds every integer?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixport.records.graph_facts import LayerFacts
from mixport.validate.proof.requantise import reach

INT32_LIMIT = 2**31 - 1
FLOAT32_LIMIT = 2**24


@dataclass(frozen=True, kw_only=True)
class SumBound:
    """Bounds of one layer's sums.

    Attributes:
        smallest: smallest reachable sum, bias included.
        largest: largest reachable sum, bias included.
        magnitude: largest |sum|, and largest |bias|: bias and products are added in the kernel's order.
        stored: largest |sum| of products with stored codes, zero point included, which x64 forms first.
    """

    smallest: int
    largest: int
    magnitude: int
    stored: int

    @property
    def fits_int32(self) -> bool:
        """No input makes a sum leave int32."""
        return max(self.magnitude, self.stored) <= INT32_LIMIT

    @property
    def exact_in_float32(self) -> bool:
        """No input makes a sum leave +-2^24."""
        return self.magnitude <= FLOAT32_LIMIT


def sum_bound(layer: LayerFacts) -> SumBound:
    """Bound a layer. Padding holds the zero point and adds nothing, so a product may always be absent.

    Args:
        layer: weights with a bias, or two code tensors.

    Raises:
        ValueError: the smallest code is above the largest, or weights have fewer than two axes.
    """
    low, high, zero_point = layer.left
    if low > high or (layer.weights is not None and layer.weights.ndim < 2):
        shape = None if layer.weights is None else layer.weights.shape
        raise ValueError(
            f"{layer.site}: codes [{low}, {high}] and weights of shape {shape}: low <= high and two "
            "axes are needed"
        )
    smallest, largest = reach(layer)
    bias = 0 if layer.bias is None else int(np.abs(layer.bias).max(initial=0))
    widest = max(abs(low), abs(high), abs(zero_point))
    if layer.weights is None:
        assert layer.right is not None
        stored = layer.products * widest * max(abs(code) for code in layer.right)
    else:
        rows = layer.weights.reshape(len(layer.weights), -1)
        stored = (
            int(max(np.maximum(rows, 0).sum(1).max(initial=0), -np.minimum(rows, 0).sum(1).min(initial=0)))
            * widest
        )
    ends = int(smallest.min()), int(largest.max())
    return SumBound(
        smallest=ends[0], largest=ends[1], magnitude=max(abs(ends[0]), abs(ends[1]), bias), stored=stored
    )
