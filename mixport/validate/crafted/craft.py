"""Codes built for a purpose: sums that land next to a rounding tie, and sums that saturate.

All functions work on rows: one row is everything that one output value reads, K codes against K integer
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

#: Ties looked at per row: all of them for 8-bit codes, evenly spaced ones for 16-bit codes.
_MAX_TIES = 512

#: How many of a row's best targets are tried before it is given up.
_ATTEMPTS = 6


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Weights and parameters of R output values.

    Attributes:
        weights: centred, int64 [R, K].
        bias: int64 [R].
        multiplier: float32 [R], from sums to output codes.
        low: smallest input code.
        high: largest input code.
        zero_point: of the input codes.
    """

    weights: Int
    bias: Int
    multiplier: NDArray[np.float32]
    low: int
    high: int
    zero_point: int

    def sums(self, codes: Int) -> Int:
        """Accumulators of codes [R, K]."""
        return (self.weights * (codes - self.zero_point)).sum(axis=1) + self.bias

    def reach(self) -> tuple[Int, Int]:
        """Smallest and largest sums."""
        return self.sums(extreme(self, largest=False)), self.sums(extreme(self, largest=True))


def extreme(rows: Rows, *, largest: bool) -> Int:
    """Codes that give each row its largest (or smallest) sum."""
    return np.where((rows.weights > 0) == largest, rows.high, rows.low)


def random_codes(rows: Rows, rng: np.random.Generator) -> Int:
    """Uniform codes inside the range."""
    return rng.integers(rows.low, rows.high + 1, rows.weights.shape)


def tie_targets(rows: Rows, *, zero_point: int, low: int, high: int) -> Int:
    """Reachable sums whose product with the multiplier is nearest to a rounding tie inside the output range.

    Args:
        rows: the output values.
        zero_point: of the output.
        low: smallest output code.
        high: largest output code.

    Returns:
        [R, attempts], best first, rotated so that neighbouring rows aim at different ties. A row without any
        reachable tie repeats its smallest sum.
    """
    first, last = rows.reach()
    k = np.unique(
        np.linspace(low - zero_point, high - 1 - zero_point, min(_MAX_TIES, high - low)).astype(np.int64)
    )
    exact = (k + 0.5)[None, :] / rows.multiplier.astype(np.float64)[:, None]
    # Beyond int64 nothing is reachable; the clip only keeps the conversion defined.
    bounded = np.clip(exact, -(2.0**40), 2.0**40)
    candidates = np.concatenate([np.floor(bounded), np.ceil(bounded)], axis=1).astype(np.int64)
    ties = np.concatenate([k, k]) + 0.5
    distance = np.abs(candidates * rows.multiplier.astype(np.float64)[:, None] - ties)
    outside = (candidates < first[:, None]) | (candidates > last[:, None])
    distance = np.where(outside, np.inf, distance)
    kept = min(4 * _ATTEMPTS, distance.shape[1])
    nearest = np.argpartition(distance, kept - 1, axis=1)[:, :kept]
    ranks = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1, kind="stable")
    order = np.take_along_axis(nearest, ranks, axis=1)
    best = np.take_along_axis(candidates, order, axis=1)
    unreachable = np.isinf(np.take_along_axis(distance, order, axis=1))
    best = np.where(unreachable, first[:, None], best)
    shift = np.arange(len(best))[:, None] + np.arange(min(_ATTEMPTS, best.shape[1]))[None, :]
    return np.take_along_axis(best, shift % best.shape[1], axis=1)


def reach_targets(rows: Rows, targets: Int, rng: np.random.Generator) -> tuple[Int, NDArray[np.bool_]]:
    """Codes whose sums are exactly the targets.

    From a random start, the weights in descending magnitude take up as much of the difference as their codes
    allow; the small weights at the end take the rest.

    Args:
        rows: the output values.
        targets: [R, attempts]; tried in order.
        rng: for the starts.

    Returns:
        codes [R, K], and whether each row's sum is one of its targets.
    """
    codes = random_codes(rows, rng)
    done = np.zeros(len(codes), np.bool_)
    order = np.argsort(-np.abs(rows.weights), axis=1, kind="stable")
    weights = np.take_along_axis(rows.weights, order, axis=1)
    for attempt in range(targets.shape[1]):
        open_rows = np.flatnonzero(~done)
        if open_rows.size == 0:
            break
        start = rng.integers(rows.low, rows.high + 1, (open_rows.size, codes.shape[1]))
        moved = _descend(
            weights[open_rows], start, targets[open_rows, attempt] - rows.bias[open_rows], rows=rows
        )
        back = np.empty_like(moved)
        np.put_along_axis(back, order[open_rows], moved, axis=1)
        codes[open_rows] = back
        done = (
            rows.sums(codes) == targets[:, attempt]
            if attempt == 0
            else done | (rows.sums(codes) == targets[:, attempt])
        )
    return codes, done


def _descend(weights: Int, codes: Int, targets: Int, *, rows: Rows) -> Int:
    rest = targets - (weights * (codes - rows.zero_point)).sum(axis=1)
    for column in range(weights.shape[1]):
        if not rest.any():
            break
        w = weights[:, column]
        step = np.sign(rest) * np.sign(w) * (np.abs(rest) // np.maximum(np.abs(w), 1))
        new = np.clip(codes[:, column] + step, rows.low, rows.high)
        rest = rest - w * (new - codes[:, column])
        codes[:, column] = new
    return codes
