"""Float functions of one value that may stand for a table of codes: what they compute, and how far any
runtime may be off.

Runtimes round functions such as Sigmoid or Gelu differently in the last bits. Behind 8-bit codes they have at
most 256 inputs, and their result is rounded to a code. Where every result lies further from the boundary
between two codes than any runtime's error, all runtimes give the same codes: `proved_codes` decides that for
one pair of quantisers.

The conformance kit measures each runtime against the bounds, divided by MARGIN (forms `function-error.*`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.quant_params import QuantParams

Double = NDArray[np.float64]

TABLE = "table"
"""The form of a function that is written as a table of its codes; any other form is a key of
FLOAT_FUNCTIONS.
"""

MARGIN = 2.0
"""The bounds below are at least so many times the largest error that the conformance kit allows a runtime."""

_NO_ATTRIBUTES: Mapping[str, float | str] = MappingProxyType({})
_HALF_ULP = 2.0**-24
"""Largest relative error of one correctly rounded float32 operation."""


@dataclass(frozen=True, kw_only=True)
class FloatFunction:
    """One ONNX operator with its attributes.

    Attributes:
        op_type: ONNX operator of the default domain.
        evaluate: its value in float64, correct to far less than the bounds below.
        relative: bound of the error, relative to the value.
        absolute: bound of the error, in units of the value; added to the relative one.
        by_input: bound of the error, relative to the input; added to both.
        attributes: of the ONNX node.
        opset: first opset of the default domain that has the operator.
    """

    op_type: str
    evaluate: Callable[[Double], Double]
    relative: float
    absolute: float
    by_input: float = 0.0
    attributes: Mapping[str, float | str] = field(default_factory=lambda: _NO_ATTRIBUTES)
    opset: int = 13

    def error(self, x: Double, y: Double) -> Double:
        """Bound of |what a runtime gives - y| at the inputs x, y = evaluate(x)."""
        return self.relative * np.abs(y) + self.by_input * np.abs(x) + self.absolute


def _gelu(x: Double) -> Double:
    return np.asarray(
        [0.5 * value * math.erfc(-value / math.sqrt(2.0)) for value in x.ravel().tolist()]
    ).reshape(x.shape)


def _gelu_tanh(x: Double) -> Double:
    # 0.5 (1 + tanh u) is sigmoid(2 u), which does not cancel for negative u.
    return x * _sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))


def _sigmoid(x: Double) -> Double:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _erf(x: Double) -> Double:
    return np.asarray([math.erf(value) for value in x.ravel().tolist()]).reshape(x.shape)


def _hard_sigmoid(x: Double) -> Double:
    # alpha is a float32 attribute.
    return np.clip(float(np.float32(1.0 / 6.0)) * x + 0.5, 0.0, 1.0)


def _hard_swish(x: Double) -> Double:
    return x * _hard_sigmoid(x)


def _identity(x: Double) -> Double:
    return x


_TINY = 2.0**-100
"""Results next to 0 may be flushed to 0."""

FLOAT_FUNCTIONS: Mapping[str, FloatFunction] = MappingProxyType(
    {
        "Sigmoid": FloatFunction(op_type="Sigmoid", evaluate=_sigmoid, relative=2.0**-20, absolute=2.0**-21),
        "Tanh": FloatFunction(op_type="Tanh", evaluate=np.tanh, relative=2.0**-20, absolute=2.0**-21),
        "Erf": FloatFunction(op_type="Erf", evaluate=_erf, relative=2.0**-20, absolute=2.0**-21),
        "Exp": FloatFunction(op_type="Exp", evaluate=np.exp, relative=2.0**-20, absolute=_TINY),
        "Gelu": FloatFunction(
            op_type="Gelu", evaluate=_gelu, relative=2.0**-21, absolute=_TINY, by_input=2.0**-21, opset=20
        ),
        "Gelu/tanh": FloatFunction(
            op_type="Gelu",
            evaluate=_gelu_tanh,
            relative=2.0**-20,
            absolute=_TINY,
            by_input=2.0**-20,
            attributes=MappingProxyType({"approximate": "tanh"}),
            opset=20,
        ),
        "HardSigmoid": FloatFunction(
            op_type="HardSigmoid",
            evaluate=_hard_sigmoid,
            relative=0.0,
            absolute=2.0**-22,
            attributes=MappingProxyType({"alpha": 1.0 / 6.0, "beta": 0.5}),
        ),
        "HardSwish": FloatFunction(
            op_type="HardSwish",
            evaluate=_hard_swish,
            relative=2.0**-21,
            absolute=_TINY,
            by_input=2.0**-21,
            opset=14,
        ),
        # With alpha 1, a multiplication by 1: exact. mixport.arithmetic.affine_tables says what it is for.
        "LeakyRelu": FloatFunction(
            op_type="LeakyRelu",
            evaluate=_identity,
            relative=2.0**-23,
            absolute=_TINY,
            attributes=MappingProxyType({"alpha": 1.0}),
        ),
    }
)


def proved_codes(
    function: FloatFunction, source: QuantParams, target: QuantParams
) -> NDArray[np.uint8] | None:
    """Codes that QuantizeLinear gives behind the function, for each of the 256 codes before it; None where a
    runtime might give others.

    Args:
        function: between the two.
        source: of uint8 codes that are dequantised (ONNX DequantizeLinear: one float32 multiplication).
        target: of the QuantizeLinear behind the function.

    Returns:
        uint8 [256].
    """
    x = (np.arange(256) - source.zero_point).astype(np.float32) * np.float32(source.scale)
    exact = x.astype(np.float64)
    y = function.evaluate(exact)
    low, high = code_interval(y, function.error(exact, y), scale=target.scale)
    limits = (target.qmin - target.zero_point, target.qmax - target.zero_point)
    first, last = (np.clip(np.rint(end), *limits) for end in (low, high))
    if not np.array_equal(first, last):
        return None
    return (first + target.zero_point).astype(np.uint8)


def code_interval(y: Double, error: Double, *, scale: float) -> tuple[Double, Double]:
    """Between which values y / scale may lie where y is off by `error`: the float32 division adds half a unit
    in the last place.
    """
    quotient = y / float(np.float32(scale))
    # The value that is divided is a float32 itself: `error` includes its rounding.
    reach = error / float(np.float32(scale)) + _HALF_ULP * (
        np.abs(quotient) + error / float(np.float32(scale))
    )
    return quotient - reach, quotient + reach
