"""Is a layer's float32 requantisation exact for every reachable sum? By thresholds always, and sum by sum
where they are few.

Both ways look at every integer in [smallest, largest] of each channel, which holds every reachable sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from mixport.arithmetic import integer
from mixport.arithmetic.requantisation import Int, Requantisation, wrong_thresholds
from mixport.records.errors import InvariantError
from mixport.records.graph_facts import LayerFacts

ENUMERATED = 1 << 22
"""Layers with at most this many sums are also computed sum by sum."""
_BLOCK = 1 << 19
_CERTAIN = 1e-9
"""Distance from a tie beyond which float64, whose error is below 1e-12 for codes of 8 bits, names the right
code.
"""


@dataclass(frozen=True, kw_only=True)
class RequantisationProof:
    """What was found.

    Attributes:
        method: `enumerated`, every sum computed in both ways; `thresholds`, both sides of every threshold
            between codes.
        sums: integers between the smallest and the largest sum, over all channels.
        wrong_thresholds: thresholds that float32 puts elsewhere than exact arithmetic; 0 is the proof.
        wrong_channels: channels that have some.
        wrong_sums: sums with another code; None where not enumerated.
        finite: the float32 multiplier of every channel is; infinity times a sum of 0 is NaN, whose code
            depends on the machine.
    """

    method: Literal["enumerated", "thresholds"]
    sums: int
    wrong_thresholds: int
    wrong_channels: int
    wrong_sums: int | None
    finite: bool = True

    @property
    def exact(self) -> bool:
        """Every sum gets its exact code."""
        return self.wrong_thresholds == 0


def prove_requantisation(
    layer: LayerFacts, *, enumerate_up_to: int = ENUMERATED
) -> RequantisationProof | None:
    """Prove a layer, or count what is wrong; None where its output is float.

    Args:
        layer: its integers.
        enumerate_up_to: sums, over all channels, that are computed one by one.

    Raises:
        InvariantError: the two methods contradict each other.
    """
    if layer.y is None:
        return None
    low, high = reach(layer)
    rule = Requantisation(
        x_scale=layer.x_scale,
        w_scale=np.broadcast_to(layer.w_scale.astype(np.float32), low.shape),
        y_scale=layer.y.scale,
        zero_point=layer.y.zero_point,
        qmin=layer.y.low,
        qmax=layer.y.high,
    )
    with np.errstate(over="ignore"):
        infinite = int((~np.isfinite(rule.multiplier)).sum())
    if infinite:
        return RequantisationProof(
            method="thresholds",
            sums=int((high - low + 1).sum()),
            wrong_thresholds=infinite,
            wrong_channels=infinite,
            wrong_sums=None,
            finite=False,
        )
    wrong = wrong_thresholds(rule, low=low, high=high)
    sums = int((high - low + 1).sum())
    counted: int | None = None
    if sums <= enumerate_up_to:
        per_channel = count_wrong_sums(rule, low=low, high=high)
        counted = int(per_channel.sum())
        if ((per_channel > 0) != (wrong > 0)).any():
            raise InvariantError(
                f"{layer.site}: thresholds and enumeration disagree on channel "
                f"{int(((per_channel > 0) != (wrong > 0)).argmax())}"
            )
    return RequantisationProof(
        method="thresholds" if counted is None else "enumerated",
        sums=sums,
        wrong_thresholds=int(wrong.sum()),
        wrong_channels=int((wrong > 0).sum()),
        wrong_sums=counted,
    )


def reach(layer: LayerFacts) -> tuple[Int, Int]:
    """Smallest and largest sum of every channel, int64 [O]; [1] for a product of two code tensors."""
    low, high, zero_point = layer.left
    up, down = max(high - zero_point, 0), min(low - zero_point, 0)
    if layer.weights is None:
        assert layer.right is not None
        corners = [(a - zero_point) * (b - layer.right[2]) for a in (low, high) for b in layer.right[:2]]
        return np.array([layer.products * min(*corners, 0)]), np.array([layer.products * max(*corners, 0)])
    rows = layer.weights.reshape(len(layer.weights), -1)
    positive, negative = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    offset = np.zeros(len(rows), np.int64) if layer.bias is None else layer.bias
    return positive * down + negative * up + offset, positive * up + negative * down + offset


def count_wrong_sums(rule: Requantisation, *, low: Int, high: Int) -> Int:
    """Sums in [low, high] whose code differs from exact arithmetic, per channel, each computed in both ways.

    Args:
        rule: the requantisation.
        low: int64 [C].
        high: int64 [C].

    Returns:
        int64 [C].
    """
    wrong = np.zeros(len(low), np.int64)
    for channel in range(len(low)):
        one = Requantisation(
            x_scale=rule.x_scale,
            w_scale=rule.w_scale[channel : channel + 1],
            y_scale=rule.y_scale,
            zero_point=rule.zero_point,
            qmin=rule.qmin,
            qmax=rule.qmax,
        )
        for start in range(int(low[channel]), int(high[channel]) + 1, _BLOCK):
            sums = np.arange(start, min(start + _BLOCK, int(high[channel]) + 1))
            got = integer.requantise(
                sums, multiplier=one.multiplier, zero_point=one.zero_point, qmin=one.qmin, qmax=one.qmax
            )
            wrong[channel] += int((got != _exact_codes(sums, one)).sum())
    return wrong


def _exact_codes(sums: Int, rule: Requantisation) -> Int:
    """Codes by exact arithmetic: float64 where it cannot be wrong, rational numbers next to ties."""
    x, w, y = (Fraction(float(np.float32(value))) for value in (rule.x_scale, rule.w_scale[0], rule.y_scale))
    exact = x * w / y
    low, high = rule.qmin - rule.zero_point, rule.qmax - rule.zero_point
    values = np.clip(sums.astype(np.float64) * float(exact), low, high)
    codes = np.rint(values).astype(np.int64)
    for i in np.flatnonzero(np.abs(np.abs(values - np.floor(values)) - 0.5) < _CERTAIN):
        codes[i] = min(max(round(int(sums[i]) * exact), low), high)
    return codes + rule.zero_point
