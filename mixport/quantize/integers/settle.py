"""The last word on a layer's scales: `settle`, called once a layer when every other choice is made.

Whatever chose the codes, what ships is checked here against what the target allows: its grid of scales and
the bound of neighbouring products. Scales that may be any float32 value are then moved until requantisation
is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.neighbour_pairs import forms_pairs, pair_violations
from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.quantize.integers.exact_scales import Layer, exact_scales
from mixport.quantize.integers.pair_bound import PairBound, repair_pairs
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """One layer whose codes are chosen.

    Attributes:
        name: of the layer.
        codes: of its weight, int8 [O, C / groups, ...].
        bias: float32 [O], None without one.
        groups: of a convolution.
    """

    name: str
    codes: NDArray[np.int8]
    bias: Float | None
    groups: int


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Scales float32 [O] that ship, and what was changed to get there."""

    scales: Float
    decisions: tuple[Decision, ...]


def settle(
    layer: RoundedLayer,
    scales: Float,
    *,
    x: QuantParams,
    y: QuantParams | None,
    pair_limit: int | None,
    grid: ScaleGrid = ANY_SCALE,
) -> Settled:
    """Check grid and pair bound, then move scales until requantisation is exact. Codes are never touched.

    Args:
        layer: codes and bias.
        scales: chosen for it, float32 [O].
        x: of the codes that it reads.
        y: of the codes that its quantiser gives; None where floats follow.
        pair_limit: of the target.
        grid: of the target: where it leaves no free choice, scales stay as they are.

    Raises:
        InvariantError: the codes break the pair bound, or a scale is not on the grid.
    """
    if not grid.holds_weights(scales):
        raise InvariantError(
            f"{layer.name}: weight scales {np.unique(scales)[:3]} are not what the target allows ({grid})"
        )
    if pair_limit is not None:
        check_pairs(layer.name, layer.codes, bound=_bound(x, pair_limit), groups=layer.groups)
    if y is None or y.storage != "uint8":
        return Settled(scales=scales, decisions=())
    moved = exact_scales(Layer(codes=layer.codes, bias=layer.bias, x=x, y=y), scales, grid=grid)
    decisions = _moves(layer.name, channels=moved.channels, furthest=moved.furthest, inexact=moved.inexact)
    return Settled(scales=moved.scales, decisions=tuple(decisions))


def keep_pair_bound(
    name: str,
    weight: Float,
    scales: Float,
    codes: NDArray[np.int8],
    *,
    bits: int,
    groups: int,
    x: QuantParams,
    limit: int,
    grid: ScaleGrid = ANY_SCALE,
) -> tuple[Float, NDArray[np.int8], list[Decision]]:
    """Repair pairs of weights that could saturate; see `pair_bound`.

    Args:
        name: of the layer.
        weight: float32 [O, C / groups, ...].
        scales: float32 [O].
        codes: int8, shape of weight.
        bits: width of the codes.
        groups: of a convolution.
        x: of the codes that it reads.
        limit: of the target.
        grid: of the target's scales.
    """
    bound = _bound(x, limit)
    repaired = repair_pairs(weight, scales, codes, bits=bits, bound=bound, groups=groups, grid=grid)
    check_pairs(name, repaired.codes, bound=bound, groups=groups)
    if not repaired.beyond:
        return scales, codes, []
    decision = Decision(
        where=name,
        what=(
            f"{repaired.moved} pairs of neighbouring weights made smaller, scale of {repaired.channels} "
            "channels raised"
        ),
        why=(
            f"two products of {repaired.beyond} pairs could leave [{-limit - 1}, {limit}], where some "
            "machines saturate"
        ),
    )
    return repaired.scales, repaired.codes, [decision]


def _bound(x: QuantParams, limit: int) -> PairBound:
    # Padding holds the zero point, which may lie above the largest code.
    return PairBound(largest_code=max(x.qmax, x.zero_point), limit=limit)


def check_pairs(name: str, codes: NDArray[np.int8], *, bound: PairBound, groups: int) -> None:
    """Raise InvariantError where a pair of weights breaks the bound."""
    if not forms_pairs(codes.shape, groups=groups):
        return
    broken = pair_violations(codes, largest_code=bound.largest_code, limit=bound.limit)
    if broken.any():
        channel, pair = (int(i) for i in np.argwhere(broken)[0])
        raise InvariantError(
            f"{name}: weights {2 * pair} and {2 * pair + 1} of channel {channel} drive two products "
            f"beyond {bound.limit}, "
            f"allowed are positive sums up to {bound.up} and negative ones down to {-bound.down}"
        )


def _moves(name: str, *, channels: int, furthest: int, inexact: int) -> list[Decision]:
    found: list[Decision] = []
    if channels:
        found.append(
            Decision(
                where=name,
                what=(
                    f"weight scale of {channels} channels moved by at most {furthest} units in the last place"
                ),
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
