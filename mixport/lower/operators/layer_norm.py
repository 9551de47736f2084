"""LayerNorm as nodes whose result every IEEE-754 machine agrees on:
mixport.arithmetic.portable_float.layer_norm, one ONNX node a step.

The order of nodes is part of the result. Sums are over integers that their float type holds exactly, so the
order inside a sum is not. What counts is passes over the whole tensor, and that a value a row is no [.., 1]
tensor: runtimes broadcast a scalar to that element by element.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mixport.arithmetic.portable_float import has_integer_mean, sums_fit_float32, variance_offset
from mixport.lower.onnx_graph import UNDOES, constant_of, initializer, mark, node
from mixport.lower.operators.node_chain import NodeChain
from mixport.records.errors import InvariantError

_FLOAT, _DOUBLE = int(ir.DataType.FLOAT), int(ir.DataType.DOUBLE)


def expand_layer_norm(graph: ir.Graph, old: ir.Node) -> None:
    """mixport::LayerNorm. Its input is turned back into the codes it was dequantised from."""
    attributes = old.attributes
    scale, storage = attributes["scale"].as_float(), attributes["storage"].as_string()
    x, weight, bias = old.inputs
    assert x is not None
    gamma, beta = constant_of(weight), constant_of(bias)
    if gamma is None or beta is None:
        raise InvariantError(f"weight or bias of {old.name} is not constant")
    name = attributes["name"].as_string()
    step = NodeChain(graph, name)
    in_scale = initializer(graph, f"{name}/in_scale/{old.outputs[0].name}", np.asarray(scale, np.float32))
    back = node(
        "QuantizeLinear",
        [x, in_scale, step.scalar(attributes["zero_point"].as_int(), np.dtype(storage))],
        output=f"{name}/in",
        name=f"{name}/QuantizeLinear",
    )
    mark(back.outputs[0], UNDOES, name)
    step.nodes.append(back)
    offset = variance_offset(len(gamma), epsilon=float(attributes["epsilon"].as_string()), scale=scale)
    normalise = _by_integer_mean if has_integer_mean(storage) else _by_mean
    # The exporter states the shape of its own values; of those that other expansions made, none is.
    shape = x.shape if x.shape is not None else old.outputs[0].shape
    codes = back.outputs[0]
    if has_integer_mean(storage) and (shape is None or len(shape) != 2):
        codes = step("Reshape", codes, step.integers(-1, len(gamma)))
    normal = normalise(step, codes, len(gamma), offset=offset, storage=storage)
    together = _rows_together(shape, len(gamma)) if np.any(gamma != 1) or np.any(beta) else 1
    if together > 1:
        normal = step("Reshape", normal, step.integers(-1, len(gamma) * together))
    result = _scaled(step, normal, gamma, beta, together=together)
    if together > 1 or codes is not back.outputs[0]:
        result = _reshaped_back(step, result, x, shape)
    step.insert(old, result)


def _by_integer_mean(
    step: NodeChain, codes: ir.Value, length: int, *, offset: float, storage: str
) -> ir.Value:
    """(c - m) * factor in one pass: a DequantizeLinear whose scale and zero point, one a row, are computed.
    Codes and result [rows, D].
    """
    total, squares = _sums(step, step("Cast", codes, to=_DOUBLE))
    factor = step("Cast", _factor(step, total, squares, length, offset=offset), to=_FLOAT)
    # Its result, S / D to the nearest integer, is one of the codes' type.
    mean = step(
        "QuantizeLinear",
        step("Cast", total, to=_FLOAT),
        step.scalar(float(length)),
        step.scalar(0, np.dtype(storage)),
    )
    return step("DequantizeLinear", codes, factor, mean, axis=0)


def _by_mean(step: NodeChain, codes: ir.Value, length: int, *, offset: float, storage: str) -> ir.Value:
    """(c - mean) * factor, float32 of the codes' shape."""
    narrow = step("Cast", codes, to=_FLOAT)
    if sums_fit_float32(length, storage=storage):
        total, squares = (step("Cast", each, to=_DOUBLE) for each in _sums(step, narrow))
    else:
        total, squares = _sums(step, step("Cast", codes, to=_DOUBLE))
    factor = step("Cast", _factor(step, total, squares, length, offset=offset), to=_FLOAT)
    mean = step("Cast", step("Div", total, step.scalar(float(length), np.float64)), to=_FLOAT)
    last = step.integers(-1)
    return step("Mul", step("Sub", narrow, step("Unsqueeze", mean, last)), step("Unsqueeze", factor, last))


def _sums(step: NodeChain, values: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Sum and sum of squares of each row. ReduceSumSquare takes twice as long as the two nodes (ONNX Runtime
    1.32).
    """
    total = step.over_last("ReduceSum", values, keepdims=0)
    return total, step.over_last("ReduceSum", step("Mul", values, values), keepdims=0)


def _factor(step: NodeChain, total: ir.Value, squares: ir.Value, length: int, *, offset: float) -> ir.Value:
    """D / sqrt(D Q - S^2 + offset), float64."""
    count = step.scalar(float(length), np.float64)
    spread = step("Sub", step("Mul", squares, count), step("Mul", total, total))
    return step("Div", count, step("Sqrt", step("Add", spread, step.scalar(offset, np.float64))))


def _scaled(
    step: NodeChain, normal: ir.Value, gamma: NDArray[np.float32], beta: NDArray[np.float32], *, together: int
) -> ir.Value:
    """normal * gamma + beta, without what changes nothing. `normal` holds `together` rows side by side."""
    for op, name, values in (("Mul", "gamma", gamma), ("Add", "beta", beta)):
        if np.any(values != (1 if op == "Mul" else 0)):
            constant = initializer(
                step.graph, f"{step.name}/{name}", np.tile(values.astype(np.float32), together)
            )
            normal = step(op, normal, constant)
    return normal


_SHORT, _SPAN = 128, 1024
"""A runtime broadcasts [D] to [rows, D] row by row. Up to _SHORT values a row that costs as much as the
values do; not so at _SPAN.
"""


def _rows_together(shape: ir.Shape | None, length: int) -> int:
    """How many short rows to take as one: as many as make up _SPAN values at most, and divide the rows of an
    image.
    """
    if shape is None or length > _SHORT:
        return 1
    rows = int(np.prod([size for size in shape[:-1] if isinstance(size, int)], dtype=np.int64))
    return max(count for count in range(1, _SPAN // length + 1) if rows % count == 0)


def _reshaped_back(step: NodeChain, rows: ir.Value, x: ir.Value, shape: ir.Shape | None) -> ir.Value:
    """[rows, D] in the shape of x; by its own Shape where several of its sizes are not known."""
    sizes = None if shape is None else [size if isinstance(size, int) else -1 for size in shape]
    if sizes is None or sizes.count(-1) > 1:
        return step("Reshape", rows, step("Shape", x))
    return step("Reshape", rows, step.integers(*sizes))
