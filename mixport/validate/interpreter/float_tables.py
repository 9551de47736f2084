"""Float functions between codes: a cone of elementwise operators from one 8-bit code tensor to
QuantizeLinear, proved to be a table.

The cone starts at DequantizeLinear nodes of one code tensor, holds at least one function of
mixport.arithmetic.float_functions, and ends at QuantizeLinear nodes alone. It is evaluated for every code:
correctly rounded operations in float32 as they are, functions in float64 with the bound of their error
carried along. Where both ends of the resulting interval round to one code, every runtime gives that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, FloatFunction, code_interval
from mixport.validate.interpreter.fusion import Surroundings
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.kernels_elementwise import ELEMENTWISE
from mixport.validate.interpreter.values import TensorInfo

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Movement that keeps every value of a tensor: the cone looks through it."""

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Neg"})
"""Operators through which an error is carried. All others of ELEMENTWISE may only read exact values."""

_HALF_ULP = 2.0**-24

Double = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cone:
    """Everything between one code tensor and one QuantizeLinear.

    Attributes:
        codes: name of the code tensor.
        nodes: in graph order, DequantizeLinear nodes and the QuantizeLinear included.
        low: smallest code of the result, over all that the code tensor may hold.
        high: largest one.
    """

    codes: str
    nodes: tuple[Node, ...]
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Values of a tensor for every code: float32 where `error` is None, else float64 that a runtime may miss
    by `error`.
    """

    values: Array
    error: Double | None = None


class _Unproved(Exception):
    """Why a cone is no table."""


def float_function(node: Node) -> FloatFunction | None:
    """The function that a node computes, with these attributes; None for one that is not known."""
    for function in FLOAT_FUNCTIONS.values():
        if function.op_type == node.op and _attributes(node) == {
            k: _plain(v) for k, v in function.attributes.items()
        }:
            return function
    return None


def prove_cones(node: Node, around: Surroundings) -> tuple[Mapping[int, Cone], str]:
    """Cones that hold this function, by the index of their QuantizeLinear.

    Args:
        node: with a function that `float_function` knows.
        around: everything before it is known.

    Returns:
        the cones, and an empty text; or none, and why not every runtime gives the same codes.
    """
    try:
        ends = _ends(node, around)
        return {end.index: _prove(end, around) for end in ends}, ""
    except _Unproved as fault:
        return {}, str(fault)


def evaluate_function(function: FloatFunction, x: Array) -> Array:
    """float32 values of a proved function; each distinct input is computed once."""
    distinct, place = np.unique(np.asarray(x, np.float32), return_inverse=True)
    return function.evaluate(distinct.astype(np.float64)).astype(np.float32)[place].reshape(x.shape)


def _attributes(node: Node) -> dict[str, Any]:
    defaults = {"HardSigmoid": {"alpha": 0.2, "beta": 0.5}}.get(node.op, {})
    given = {
        **defaults,
        **{k: v for k, v in node.attributes.items() if not (node.op == "Gelu" and v == "none")},
    }
    return {k: _plain(v) for k, v in given.items()}


def _plain(value: float | str) -> float | str:
    """Attributes of floats hold float32."""
    return value if isinstance(value, str) else float(np.float32(value))


def _ends(node: Node, around: Surroundings) -> list[Node]:
    """QuantizeLinear nodes that the function's values arrive at, through elementwise operators alone."""
    found: dict[int, Node] = {}
    waiting = [node]
    while waiting:
        output = waiting.pop().outputs[0]
        readers = around.graph.consumers.get(output, ())
        if not readers or around.graph.is_output(output):
            raise _Unproved("its float result is read as it is")
        for reader in readers:
            if reader.op == "QuantizeLinear":
                found[reader.index] = reader
            elif reader.op in _ARITHMETIC or reader.op in _MOVES:
                waiting.append(reader)
            else:
                raise _Unproved(f"its float result is read by {reader.op}")
    return list(found.values())


def _prove(end: Node, around: Surroundings) -> Cone:
    reader = _ConeReader(around)
    found = reader.value(end.input(0))
    scale, zero_point = around.constant(end.input(1)), around.constant(end.input(2))
    if scale is None or scale.size != 1 or zero_point is None or zero_point.dtype.itemsize != 1:
        raise _Unproved("its result is not quantised to 8 bits with one scale")
    if found.error is None:
        raise _Unproved("no function is in the way")
    low, high = code_interval(found.values, found.error, scale=float(scale.reshape(-1)[0]))
    limits, zero = np.iinfo(zero_point.dtype), int(zero_point.reshape(-1)[0])
    first, last = (np.clip(np.rint(edge), limits.min - zero, limits.max - zero) for edge in (low, high))
    if not np.array_equal(first, last):
        at = int(np.flatnonzero(first != last)[0])
        raise _Unproved(
            f"for code {reader.code(at)} its value lies within its error of the boundary of two codes"
        )
    nodes = {one.index: one for one in (*reader.nodes, end)}
    reached = (int(first.min()) + zero, int(first.max()) + zero)
    if reached[0] == reached[1]:  # a range holds two codes
        reached = (max(reached[0] - 1, limits.min), max(reached[1], limits.min + 1))
    return Cone(
        codes=reader.source,
        nodes=tuple(nodes[index] for index in sorted(nodes)),
        low=reached[0],
        high=reached[1],
    )


class _ConeReader:
    """Evaluates tensors for every code of the one tensor that they depend on."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.source = ""
        self.low = 0
        self.nodes: list[Node] = []
        self._known: dict[str, _Range] = {}

    def code(self, position: int) -> int:
        """The code that a position of the values stands for."""
        return self.low + position

    def value(self, name: str) -> _Range:
        if name not in self._known:
            self._known[name] = self._evaluate(name)
        return self._known[name]

    def _evaluate(self, name: str) -> _Range:
        constant = self.around.constant(name)
        if constant is not None:
            if constant.size != 1 or constant.dtype != np.float32:
                raise _Unproved("it meets a constant of several values")
            return _Range(values=constant.reshape(1))
        node = self.around.graph.producer.get(name)
        if node is None:
            raise _Unproved("its input is no codes")
        self.nodes.append(node)
        if node.op == "DequantizeLinear":
            return self._dequantised(node)
        if node.op in _MOVES:
            return self.value(node.input(0))
        function = float_function(node)
        args = [self.value(one) for one in node.inputs if one]
        if function is not None:
            return _apply(function, args[0])
        kernel = ELEMENTWISE.get(node.op)
        if kernel is None or node.op == "Cast":
            raise _Unproved(f"{node.op} lies between the codes and the quantiser")
        if all(arg.error is None for arg in args):
            (values,) = kernel(node, [arg.values for arg in args])
            return _Range(values=values)
        return _carry(node.op, args)

    def _dequantised(self, node: Node) -> _Range:
        scale, zero_point = self.around.constant(node.input(1)), self.around.constant(node.input(2))
        name = node.input(0)
        if scale is None or scale.size != 1 or zero_point is None or zero_point.dtype.itemsize != 1:
            raise _Unproved("it reads codes of more than 8 bits, or with several scales")
        if self.source not in ("", name):
            raise _Unproved(f"it depends on two code tensors, {self.source} and {name}")
        self.source = name
        self.low, high = _code_range(self.around.tensors.get(name), zero_point.dtype)
        codes = np.arange(self.low, high + 1) - int(zero_point.reshape(-1)[0])
        return _Range(values=codes.astype(np.float32) * np.float32(scale.reshape(-1)[0]))


def _code_range(info: TensorInfo | None, dtype: np.dtype[Any]) -> tuple[int, int]:
    if info is not None and info.kind == "codes":
        return info.low, info.high
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _apply(function: FloatFunction, x: _Range) -> _Range:
    if x.error is not None:
        raise _Unproved(f"{function.op_type} reads the result of another function")
    exact = x.values.astype(np.float64)
    y = function.evaluate(exact)
    return _Range(values=y, error=function.error(exact, y))


def _carry(op: str, args: list[_Range]) -> _Range:
    values = [arg.values.astype(np.float64) for arg in args]
    errors = [np.zeros(1) if arg.error is None else arg.error for arg in args]
    if op == "Neg":
        return _Range(values=-values[0], error=errors[0])
    if op not in _ARITHMETIC:
        raise _Unproved(f"{op} reads the result of a function")
    (a, b), (da, db) = values, errors
    result = {"Add": a + b, "Sub": a - b, "Mul": a * b}[op]
    carried = np.abs(a) * db + np.abs(b) * da + da * db if op == "Mul" else da + db
    return _Range(values=result, error=carried + _HALF_ULP * (np.abs(result) + carried))
