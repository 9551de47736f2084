"""Sums of two neighbouring products, which some machines keep in 16 bits.

x64 without VNNI multiplies u8 codes by s8 weights with VPMADDUBSW: two neighbouring products are added in
saturating int16. Which products are neighbours follows from the packing of MLAS (ONNX Runtime's kernels, read
in its sources): positions (0, 1), (2, 3), ... of the inner axis, which is kernel position outer, input
channel inner, one group at a time. The packed matrix product, the one-row product and the direct convolution
(which needs a multiple of four channels) agree on that; rows are padded with zeros. Depthwise kernels widen
every product to 32 bits and form no pairs.

The codes that meet the weights are the stored ones: the zero point is subtracted afterwards, from the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.integer import Codes

Int = NDArray[np.int64]


def forms_pairs(shape: Sequence[int], *, groups: int = 1) -> bool:
    """False for a depthwise convolution (one input and one output channel a group), whose kernels form no
    pairs.

    Args:
        shape: of the weight, [O, C / groups, ...] or [O, K].
        groups: of the convolution.
    """
    return not (len(shape) > 2 and shape[1] == 1 and shape[0] == groups)


def kernel_order(weights: Codes) -> Codes:
    """Weights [O, C / groups, ...] or [O, K] as [O, K] in the order in which kernels multiply them: channels
    last.
    """
    last = weights if weights.ndim <= 2 else np.moveaxis(weights, 1, -1)
    return last.reshape(len(weights), -1)


def from_kernel_order(rows: Codes, *, shape: Sequence[int]) -> Codes:
    """Undo `kernel_order`.

    Args:
        rows: [O, K].
        shape: of the weight.
    """
    if len(shape) <= 2:
        return rows.reshape(shape)
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def in_pairs(rows: Codes) -> Codes:
    """Rows [O, K] as pairs [O, ceil(K / 2), 2], the last one completed by 0."""
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    return padded.reshape(len(rows), -1, 2)


def pair_reach(weights: Codes, *, largest_code: int) -> tuple[Int, Int]:
    """Largest and smallest sum of each pair of products, over all codes in [0, largest_code].

    Args:
        weights: centred codes [O, C / groups, ...] or [O, K].
        largest_code: of the input, zero point included.

    Returns:
        two int64 arrays [O, ceil(K / 2)]; the first is never negative, the second never positive.
    """
    pairs = in_pairs(kernel_order(weights).astype(np.int64))
    return np.maximum(pairs, 0).sum(-1) * largest_code, np.minimum(pairs, 0).sum(-1) * largest_code


def pair_violations(weights: Codes, *, largest_code: int, limit: int) -> NDArray[np.bool_]:
    """Pairs that some input drives beyond [-limit - 1, limit].

    Args:
        weights: centred codes [O, C / groups, ...] or [O, K].
        largest_code: of the input, zero point included.
        limit: e.g. 32767.

    Returns:
        [O, ceil(K / 2)].
    """
    largest, smallest = pair_reach(weights, largest_code=largest_code)
    return (largest > limit) | (smallest < -limit - 1)
