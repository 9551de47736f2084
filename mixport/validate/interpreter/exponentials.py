"""Exp of the distance of codes from the largest of their row: proved for every pair of codes; see
`float_tables` for one code tensor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, code_interval
from mixport.validate.interpreter.fusion import NotFused, Surroundings, saturation_of
from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.values import Saturation, TensorInfo


def unproved_pairs(node: Node, around: Surroundings) -> str | None:
    """Why the codes behind an Exp may differ between runtimes; empty where they cannot, None for an Exp of
    something else.

    Its argument is a difference: codes, dequantised, less the largest code of their row, dequantised. Its one
    reader is a QuantizeLinear.
    """
    arguments = _arguments(node, around)
    if arguments is None:
        return None
    readers = around.graph.consumers.get(node.outputs[0], ())
    if len(readers) != 1 or readers[0].op != "QuantizeLinear" or around.graph.is_output(node.outputs[0]):
        return "what reads it is not one QuantizeLinear"
    saturation = saturation_of(readers[0], around)
    if isinstance(saturation, NotFused):
        return f"of the QuantizeLinear behind it {saturation.reason}"
    return (
        ""
        if _is_proved(arguments, saturation)
        else "one of its values lies within its error of the boundary of two codes"
    )


def _is_proved(arguments: NDArray[np.float32], saturation: Saturation) -> bool:
    function, exact = FLOAT_FUNCTIONS["Exp"], np.unique(arguments).astype(np.float64)
    values = function.evaluate(exact)
    limits = (saturation.low - saturation.zero_point, saturation.high - saturation.zero_point)
    ends = code_interval(values, function.error(exact, values), scale=float(saturation.scale))
    low, high = (np.clip(np.rint(end), *limits) for end in ends)
    return np.array_equal(low, high)


def _arguments(node: Node, around: Surroundings) -> NDArray[np.float32] | None:
    """Every argument that can occur, float32 as the file computes it; None where they are not known."""
    difference = around.graph.producer.get(node.input(0))
    if difference is None or difference.op != "Sub":
        return None
    scores, largest = (around.graph.producer.get(name) for name in difference.inputs)
    if (
        scores is None
        or largest is None
        or scores.op != "DequantizeLinear"
        or largest.op != "DequantizeLinear"
    ):
        return None
    rows = around.graph.producer.get(largest.input(0))
    if (
        rows is None
        or rows.op != "ReduceMax"
        or rows.input(0) != scores.input(0)
        or rows.attributes.get("keepdims", 1) != 1
    ):
        return None
    left, right = (_values(around.tensors[name]) for name in difference.inputs)
    if left is None or right is None or len(left) != len(right):
        return None
    # A code is at most the largest one of its row, which is a code too: row i of the table holds the pairs of
    # largest code i.
    pairs = left[None, :] - right[:, None]
    return pairs[np.tril_indices(len(left))]


def _values(info: TensorInfo) -> NDArray[np.float32] | None:
    """Values of all codes of a dequantised tensor, lowest first."""
    quantisation = info.quantisation
    if (
        info.kind != "dequantised"
        or quantisation is None
        or not quantisation.per_tensor
        or info.dtype is None
        or info.dtype.itemsize != 1
    ):
        return None
    codes = np.arange(info.low, info.high + 1, dtype=np.int64) - quantisation.one_zero_point
    return codes.astype(np.float32) * quantisation.one_scale
