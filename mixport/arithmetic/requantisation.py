"""Does float32 requantisation give the codes of exact arithmetic? Decided at the thresholds between codes, in
integers.

Exact means: the code equals clamp(round_half_even(acc * x_scale * w_scale / y_scale) + zero_point), where the
scales are the rational numbers that the float32 values of the file are, and nothing else is rounded. The
runtime computes rint(float32(acc) * float32(float32(x_scale * w_scale) / y_scale)) instead. A tie that
float32 makes or removes is a violation where it changes the code.

Both are non-decreasing step functions of the integer acc (rounding and a product with a positive number keep
order). So they agree on [low, high] if and only if they agree on both sides of every exact threshold: at most
255 thresholds a channel, two sums each.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.integer import Float, conv_multiplier

Int = NDArray[np.int64]

_FAR = 2.0**40
"""Thresholds beyond are reached by no int32 sum; clipping keeps the conversion to integers defined."""


@dataclass(frozen=True, kw_only=True)
class Requantisation:
    """Channels that share an input and an output.

    Attributes:
        x_scale: float32 value of the input.
        w_scale: float32 [C] of the weights.
        y_scale: float32 value of the output.
        zero_point: of the output.
        qmin: smallest output code.
        qmax: largest output code.
    """

    x_scale: float
    w_scale: Float
    y_scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def multiplier(self) -> Float:
        """float32 [C], as the runtime computes it."""
        return conv_multiplier(self.x_scale, self.w_scale, self.y_scale)

    @property
    def steps(self) -> Int:
        """int64 [T]: the threshold after step k lies at the real value k + 1/2, counted from the zero
        point.
        """
        return np.arange(self.qmin - self.zero_point, self.qmax - self.zero_point, dtype=np.int64)


def exact_thresholds(rule: Requantisation) -> Int:
    """The smallest sum whose exact code lies above each step: int64 [C, T]."""
    steps = rule.steps
    numerator = (2 * steps + 1).astype(np.float64) * np.float64(
        np.float32(rule.y_scale)
    )  # 9 + 24 bits: exact
    denominator = (
        2.0 * np.float64(np.float32(rule.x_scale)) * rule.w_scale.astype(np.float64)
    )  # 48 bits: exact
    quotient = np.clip(numerator[None, :] / denominator[:, None], -_FAR, _FAR)
    below = np.floor(quotient)
    thresholds = below.astype(np.int64) + 1
    # Division is correctly rounded and integers are float64 values: a quotient that is no integer lies
    # strictly between two of them, and so does the exact one. Only where it is an integer must the remainder
    # be looked at.
    whole = np.nonzero((quotient == below) & (np.abs(quotient) < _FAR))
    at, step = quotient[whole], steps[whole[1]]
    sign = _sign_of_remainder(numerator[whole[1]], at, denominator[whole[0]])
    reached = (sign < 0) | ((sign == 0) & ((step & 1) == 1))  # a tie goes up where the code above is even
    thresholds[whole] = at.astype(np.int64) + np.where(reached, 0, 1)
    return thresholds


def _sign_of_remainder(
    numerator: NDArray[np.float64], at: NDArray[np.float64], denominator: NDArray[np.float64]
) -> Int:
    """Sign of numerator - at * denominator, exactly, where the two are within a few units in the last place
    of each other.
    """
    upper = (denominator.view(np.int64) & ~np.int64(2**27 - 1)).view(
        np.float64
    )  # 26 bits; the lower part has 22
    # Both products are exact for at < 2^27; the first difference is exact (Sterbenz); the second one's sign
    # is.
    sign = np.sign((numerator - at * upper) - at * (denominator - upper)).astype(np.int64)
    for i in np.flatnonzero(np.abs(at) >= 2.0**27):
        difference = Fraction(float(numerator[i])) - int(at[i]) * Fraction(float(denominator[i]))
        sign[i] = (difference > 0) - (difference < 0)
    return sign


def wrong_thresholds(rule: Requantisation, *, low: Int, high: Int) -> Int:
    """How many thresholds the runtime puts elsewhere than exact arithmetic does, per channel.

    Args:
        rule: the requantisation.
        low: smallest sum that is looked at, int64 [C].
        high: largest sum, int64 [C].

    Returns:
        int64 [C]; 0 proves that every sum in [low, high] gets its exact code.
    """
    thresholds = exact_thresholds(rule)
    multiplier, steps = rule.multiplier[:, None], rule.steps[None, :]
    wrong = np.zeros(thresholds.shape, np.bool_)
    for side in (0, -1):
        sums = np.clip(thresholds + side, low[:, None], high[:, None])
        wrong |= reaches_step(sums, multiplier=multiplier, steps=steps) != (sums >= thresholds)
    return wrong.sum(1)


def reaches_step(sums: Int, *, multiplier: Float, steps: Int) -> NDArray[np.bool_]:
    """Does the runtime's code of a sum lie above a step? All three broadcast."""
    product = sums.astype(np.float32) * multiplier
    middle = (steps + np.float32(0.5)).astype(np.float32)
    return (product > middle) | ((product == middle) & ((steps & 1) == 1))
