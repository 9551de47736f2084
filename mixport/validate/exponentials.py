"""Exp between codes: where all its arguments are known, it can be shown that every runtime's result rounds to the same code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixport.attention_softmax import EXP_ERROR
from mixport.validate.fusion import NotFused, Surroundings, saturation_of
from mixport.validate.graph import Node
from mixport.validate.values import Saturation, TensorInfo

_ROUNDING = 2.0**-23
"""Of the division by a scale that is no power of two, and of its own last place."""
_VANISHING = 2.0**-100


def exponential_fault(node: Node, around: Surroundings) -> str:
    """Why the codes behind an Exp may differ between runtimes; empty where they cannot.

    Its argument is a difference: codes, dequantised, less the largest code of their row, dequantised. Its one reader is a QuantizeLinear.
    """
    readers = around.graph.consumers.get(node.outputs[0], ())
    if len(readers) != 1 or readers[0].op != "QuantizeLinear" or around.graph.is_output(node.outputs[0]):
        return "Exp differs between runtimes, and what reads it is not one QuantizeLinear"
    saturation = saturation_of(readers[0], around)
    if isinstance(saturation, NotFused):
        return f"Exp differs between runtimes, and of the QuantizeLinear behind it {saturation.reason}"
    arguments = _arguments(node, around)
    if arguments is None:
        return "Exp differs between runtimes, and its argument is not the distance of codes from the largest of their row"
    nearest = nearest_tie(arguments, saturation)
    limit = EXP_ERROR + (0.0 if np.frexp(saturation.scale)[0] == 0.5 else _ROUNDING)
    return "" if nearest > limit else f"Exp differs between runtimes, and one result lies within {nearest:.2g} of a tie between two codes"


def nearest_tie(arguments: NDArray[np.float32], saturation: Saturation) -> float:
    """Smallest distance of a result from a value that rounds to either of two codes, relative to the result."""
    exact = np.maximum(np.exp(arguments.astype(np.float64)), _VANISHING) / float(saturation.scale)
    low, high = saturation.low - saturation.zero_point, saturation.high - saturation.zero_point
    tie = np.clip(np.floor(exact), low, high - 1) + 0.5
    return float((np.abs(exact - tie) / exact).min())


def _arguments(node: Node, around: Surroundings) -> NDArray[np.float32] | None:
    """Every argument that can occur, float32 as the file computes it; None where they are not known."""
    difference = around.graph.producer.get(node.input(0))
    if difference is None or difference.op != "Sub":
        return None
    scores, largest = (around.graph.producer.get(name) for name in difference.inputs)
    if scores is None or largest is None or scores.op != "DequantizeLinear" or largest.op != "DequantizeLinear":
        return None
    rows = around.graph.producer.get(largest.input(0))
    if rows is None or rows.op != "ReduceMax" or rows.input(0) != scores.input(0) or rows.attributes.get("keepdims", 1) != 1:
        return None
    left, right = (_values(around.tensors[name]) for name in difference.inputs)
    if left is None or right is None or len(left) != len(right):
        return None
    # A code is at most the largest one of its row, which is a code too: row i of the table holds the pairs of largest code i.
    pairs = left[None, :] - right[:, None]
    return pairs[np.tril_indices(len(left))]


def _values(info: TensorInfo) -> NDArray[np.float32] | None:
    """Values of all codes of a dequantised tensor, lowest first."""
    quantisation = info.quantisation
    if info.kind != "dequantised" or quantisation is None or not quantisation.per_tensor or info.dtype is None or info.dtype.itemsize != 1:
        return None
    codes = np.arange(info.low, info.high + 1, dtype=np.int64) - quantisation.one_zero_point
    return codes.astype(np.float32) * quantisation.one_scale
