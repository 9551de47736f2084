"""Can two neighbouring products of a layer leave int16, where x64 without VNNI adds them? From the weights
and the code range.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixport.arithmetic.neighbour_pairs import forms_pairs, pair_reach, pair_violations
from mixport.records.graph_facts import LayerFacts

INT16_LIMIT = 2**15 - 1

_SHIFT = 128
"""x64 kernels multiply unsigned by signed codes: signed input codes are shifted by this first, and the sum is
corrected afterwards.
"""


@dataclass(frozen=True, kw_only=True)
class PairSums:
    """Pairs of one layer.

    Attributes:
        largest: largest sum of two products that meet in a kernel, over every pair and all codes; 0 where no
            kernel forms pairs.
        smallest: smallest one.
        broken: how many pairs go beyond the limit.
        first: the first of them: its channel, its two weights and their positions in kernel order; empty
            where there is none.
    """

    largest: int
    smallest: int
    broken: int
    first: str


def pair_bound(layer: LayerFacts, *, limit: int = INT16_LIMIT) -> PairSums:
    """Bound the pairs of a layer.

    Unsigned weights, or a second tensor of unsigned codes, are widened to 16 bits before they are multiplied,
    so they form no pairs. Signed ones do, as stored: the zero point is corrected in the sum. Signed input
    codes are shifted to unsigned ones first.

    Args:
        layer: its integers.
        limit: largest sum allowed; the smallest is -limit - 1.
    """
    _, high, zero_point = layer.left
    signed, other_signed = layer.signed
    largest_code = max(high, zero_point) + (_SHIFT if signed else 0)  # padding holds the zero point
    nothing = PairSums(largest=0, smallest=0, broken=0, first="")
    if not other_signed and not signed:
        return nothing
    if layer.weights is None:
        widest = 0 if layer.right is None else max(abs(code) for code in layer.right[:2])
        reach = 2 * largest_code * widest
        beyond = reach > limit
        return PairSums(
            largest=reach,
            smallest=-reach,
            broken=int(beyond),
            first="any two products of signed codes" if beyond else "",
        )
    if not forms_pairs(layer.weights.shape, groups=layer.groups):
        return nothing
    stored = layer.weights + layer.weight_zero_point
    largest, smallest = pair_reach(stored, largest_code=largest_code)
    broken = pair_violations(stored, largest_code=largest_code, limit=limit)
    first = ""
    if broken.any():
        channel, pair = (int(i) for i in divmod(int(broken.argmax()), broken.shape[1]))
        first = (
            f"channel {channel}, weights {2 * pair} and {2 * pair + 1}: sums from "
            f"{smallest[channel, pair]} to {largest[channel, pair]}"
        )
    return PairSums(
        largest=int(largest.max(initial=0)),
        smallest=int(smallest.min(initial=0)),
        broken=int(broken.sum()),
        first=first,
    )
