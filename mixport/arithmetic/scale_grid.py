"""The scales that a target allows, as one record: every writer of a scale brings its wish onto it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float32]
_LARGEST_EXPONENT = 127
"""Of a float32: above 2^127 there is no larger power of two."""


@dataclass(frozen=True, kw_only=True)
class ScaleGrid:
    """Allowed scales.

    Attributes:
        power_of_two: activation and weight scales are 2^k with a whole k; else any positive float32.
        per_tensor: one scale for all output channels of a weight; else one for each.
    """

    power_of_two: bool = False
    per_tensor: bool = False

    @property
    def moves_freely(self) -> bool:
        """True where each scale may be any float32 value: learning, fitting and moves by units in the last
        place stay allowed.
        """
        return not self.power_of_two and not self.per_tensor

    def snap(self, scales: ArrayLike, *, up: bool = False) -> Float:
        """The nearest allowed scales (nearest in the exponent), or the nearest that are no smaller.

        Args:
            scales: positive, of any shape.
            up: never below what was asked for, as far as float32 goes.

        Returns:
            float32, of the same shape.
        """
        wanted = np.asarray(scales, np.float64)
        if not self.power_of_two:
            nearest = wanted.astype(np.float32)
            return np.where(up & (nearest < wanted), np.nextafter(nearest, np.float32(np.inf)), nearest)
        mantissa, exponent = np.frexp(wanted)  # wanted = mantissa 2^exponent, mantissa in [0.5, 1)
        # 0.5 is a power of two itself; sqrt(0.5) is the middle of the exponents.
        low = mantissa <= (0.5 if up else np.sqrt(0.5))
        return np.ldexp(1.0, np.minimum(exponent - low, _LARGEST_EXPONENT)).astype(np.float32)

    def snap_weights(self, scales: ArrayLike) -> Float:
        """Weight scales [O] that are allowed and no smaller: onto the grid, and all alike where the weight
        has one scale.
        """
        found = self.snap(scales, up=True)
        return np.full_like(found, found.max()) if self.per_tensor and found.size else found

    def holds(self, scales: ArrayLike) -> bool:
        """True where every scale is on the grid."""
        values = np.asarray(scales, np.float32)
        return not self.power_of_two or bool((np.frexp(values)[0] == 0.5).all())

    def holds_weights(self, scales: ArrayLike) -> bool:
        """True where the scales [O] of a weight are allowed."""
        values = np.asarray(scales, np.float32)
        return self.holds(values) and not (self.per_tensor and np.unique(values).size > 1)


ANY_SCALE = ScaleGrid()
"""Any positive float32 scale, one for each output channel of a weight."""
