"""The last word on a layer's integers: what the target's machines need of them, checked after every other choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.artifacts import Decision
from mixport.errors import InvariantError
from mixport.pairs import forms_pairs, pair_violations
from mixport.quantize.exact_scales import Layer, exact_scales
from mixport.quantize.pair_bound import PairBound, repair_pairs
from mixport.quantspec import QuantParams

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """One layer on the way to its integers.

    Attributes:
        name: of its weight.
        weight: float32 [O, C / groups, ...].
        bias: float32 [O], None without one.
        groups: of a convolution.
        bits: width of the codes.
    """

    name: str
    weight: Float
    bias: Float | None
    groups: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class FixedIntegers:
    """Scales float32 [O] and int8 codes that stay as they are, and what was changed to get there."""

    scales: Float
    codes: NDArray[np.int8]
    decisions: tuple[Decision, ...]


def fix_integers(
    layer: RoundedLayer, scales: Float, codes: NDArray[np.int8], *, x: QuantParams, y: QuantParams | None, pair_limit: int | None
) -> FixedIntegers:
    """Repair pairs that could saturate, then move scales until requantisation is exact.

    Args:
        layer: the float layer.
        scales: chosen for it, float32 [O].
        codes: chosen for it, int8 of the weight's shape.
        x: of the codes that it reads.
        y: of the codes that its quantiser gives; None where floats follow.
        pair_limit: of the target.

    Raises:
        InvariantError: the codes still break the pair bound.
    """
    decisions: list[Decision] = []
    if pair_limit is not None:
        scales, codes, found = _within_pairs(layer, scales, codes, x=x, limit=pair_limit)
        decisions += found
    if y is not None and y.storage == "uint8":
        moved = exact_scales(Layer(codes=codes, bias=layer.bias, x=x, y=y), scales)
        scales = moved.scales
        decisions += _moves(layer.name, channels=moved.channels, furthest=moved.furthest, inexact=moved.inexact)
    return FixedIntegers(scales=scales, codes=codes, decisions=tuple(decisions))


def _within_pairs(
    layer: RoundedLayer, scales: Float, codes: NDArray[np.int8], *, x: QuantParams, limit: int
) -> tuple[Float, NDArray[np.int8], list[Decision]]:
    # Padding holds the zero point, which may lie above the largest code.
    bound = PairBound(largest_code=max(x.qmax, x.zero_point), limit=limit)
    repaired = repair_pairs(layer.weight, scales, codes, bits=layer.bits, bound=bound, groups=layer.groups)
    check_pairs(layer.name, repaired.codes, bound=bound, groups=layer.groups)
    if not repaired.beyond:
        return scales, codes, []
    decision = Decision(
        where=layer.name,
        what=f"{repaired.moved} pairs of neighbouring weights made smaller, scale of {repaired.channels} channels raised",
        why=f"two products of {repaired.beyond} pairs could leave [{-limit - 1}, {limit}], where some machines saturate",
    )
    return repaired.scales, repaired.codes, [decision]


def check_pairs(name: str, codes: NDArray[np.int8], *, bound: PairBound, groups: int) -> None:
    """Raise InvariantError where a pair of weights breaks the bound."""
    if not forms_pairs(codes.shape, groups=groups):
        return
    broken = pair_violations(codes, largest_code=bound.largest_code, limit=bound.limit)
    if broken.any():
        channel, pair = (int(i) for i in np.argwhere(broken)[0])
        raise InvariantError(
            f"{name}: weights {2 * pair} and {2 * pair + 1} of channel {channel} drive two products beyond {bound.limit}, "
            f"allowed are positive sums up to {bound.up} and negative ones down to {-bound.down}"
        )


def _moves(name: str, *, channels: int, furthest: int, inexact: int) -> list[Decision]:
    found: list[Decision] = []
    if channels:
        found.append(
            Decision(
                where=name,
                what=f"weight scale of {channels} channels moved by at most {furthest} units in the last place",
                why="float32 requantisation would round some reachable sum differently from exact arithmetic",
            )
        )
    if inexact:
        found.append(
            Decision(
                where=name,
                what=f"requantisation left inexact in {inexact} channels",
                why="every scale nearby rounds some reachable sum differently from exact arithmetic",
            )
        )
    return found
