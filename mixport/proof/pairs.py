"""Can two neighbouring products of a layer leave int16, where x64 without VNNI adds them? From the weights and the code range."""

from __future__ import annotations

from dataclasses import dataclass

from mixport.file_facts import LayerIntegers
from mixport.pairs import forms_pairs, pair_reach, pair_violations

INT16_LIMIT = 2**15 - 1


@dataclass(frozen=True, kw_only=True)
class PairBound:
    """Pairs of one layer.

    Attributes:
        largest: largest sum of two products that meet in a kernel, over every pair and all codes; 0 where no kernel forms pairs.
        smallest: smallest one.
        broken: how many pairs go beyond the limit.
        first: the first of them: its channel, its two weights and their positions in kernel order; empty where there is none.
    """

    largest: int
    smallest: int
    broken: int
    first: str


def pair_bound(layer: LayerIntegers, *, limit: int = INT16_LIMIT) -> PairBound:
    """Bound the pairs of a layer.

    Two tensors of u8 codes are widened to 16 bits before they are multiplied, so they form no pairs; u8 x s8 tensors do.

    Args:
        layer: its integers.
        limit: largest sum allowed; the smallest is -limit - 1.
    """
    low, high, zero_point = layer.left
    largest_code = max(high, zero_point, -low)  # padding holds the zero point
    if layer.weights is None:
        signed = layer.right is not None and layer.right[0] < 0
        reach = 2 * largest_code * max(abs(code) for code in layer.right[:2]) if signed and layer.right is not None else 0
        beyond = reach > limit
        return PairBound(largest=reach, smallest=-reach, broken=int(beyond), first="any two products of signed codes" if beyond else "")
    if not forms_pairs(layer.weights.shape, groups=layer.groups):
        return PairBound(largest=0, smallest=0, broken=0, first="")
    largest, smallest = pair_reach(layer.weights, largest_code=largest_code)
    broken = pair_violations(layer.weights, largest_code=largest_code, limit=limit)
    first = ""
    if broken.any():
        channel, pair = (int(i) for i in divmod(int(broken.argmax()), broken.shape[1]))
        first = f"channel {channel}, weights {2 * pair} and {2 * pair + 1}: sums from {smallest[channel, pair]} to {largest[channel, pair]}"
    return PairBound(largest=int(largest.max(initial=0)), smallest=int(smallest.min(initial=0)), broken=int(broken.sum()), first=first)
