"""Neighbouring units learned together where capacity jumps: mixed reconstruction granularity (MRECG, arXiv
2303.11906).

The publication merges the neighbours of one topology whose capacities differ most, by parameters, bits and
strides. Its exact measure and number of merges are not known to us; what stands here is our own. Two units
are alike where they have the same sequence of layers: operator, stride, and grouped or not; kernel sizes and
channels may differ. Capacity is the number of weights times their bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

from mixport.model.programs.fx_graph import argument, aten, groups_of, shape_of, tensor_arg
from mixport.quantize.learn.units.units import Unit, merge_units
from mixport.quantize.sites.widths import LayerWidths

MOST_MERGED = 3
"""Units in one, as in the publication's own schemes."""


def merge_neighbours(units: Sequence[Unit], widths: LayerWidths, *, part: float) -> tuple[Unit, ...]:
    """Merge the neighbours that are alike and differ most in capacity; of equal differences the first in
    graph order.

    Args:
        units: in graph order, neighbours one behind the other.
        widths: of their layers.
        part: of the pairs that are alike, 0 to 1, rounded up; a pair that would make a unit of more than
            MOST_MERGED is passed over.
    """
    pairs = [index for index in range(len(units) - 1) if topology(units[index]) == topology(units[index + 1])]
    pairs.sort(key=lambda index: -abs(capacity(units[index], widths) - capacity(units[index + 1], widths)))
    wanted = math.ceil(part * len(pairs))
    start_of = list(range(len(units)))  # of each unit: the first unit it is merged with
    for index in pairs:
        first, second = start_of[index], start_of[index + 1]
        if wanted == 0 or start_of.count(first) + start_of.count(second) > MOST_MERGED:
            continue
        start_of = [first if start == second else start for start in start_of]
        wanted -= 1
    return tuple(
        merge_units(unit for unit, start in zip(units, start_of, strict=True) if start == wanted_start)
        for wanted_start in sorted(set(start_of))
    )


def topology(unit: Unit) -> tuple[tuple[str, tuple[int, ...], bool], ...]:
    """Operator, stride, and grouped or not, of every layer."""
    return tuple((str(layer.target), _stride(layer), groups_of(layer) > 1) for layer in unit.layers)


def capacity(unit: Unit, widths: LayerWidths) -> int:
    """Bits of all weights."""
    return sum(math.prod(shape_of(tensor_arg(layer, 1))) * widths[layer].bits for layer in unit.layers)


def _stride(layer: fx.Node) -> tuple[int, ...]:
    if layer.target is aten.linear.default:
        return ()
    stride = argument(layer, 3, "stride", [1])
    return (int(stride),) if isinstance(stride, int) else tuple(int(size) for size in stride)
