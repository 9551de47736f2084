"""What flows through the interpreter: arrays, integer codes that have not been turned into floats yet, and
unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic import integer
from mixport.arithmetic.definitions import Output
from mixport.arithmetic.dtypes import STORAGE_RANGE
from mixport.validate.interpreter.graph import Array

Kind = Literal["codes", "dequantised", "float", "index", "unknown"]
"""Static kind of a tensor.

codes: integers of a quantised tensor. dequantised: codes behind DequantizeLinear, which a fused kernel may
read as integers. float: exactly known IEEE floats. index: shapes, indices and booleans. unknown: behind a
float island.
"""

#: NumPy types that code tensors have.
CODE_TYPES = frozenset(map(np.dtype, ("uint8", "int8", "uint16", "int16")))


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """real = (code - zero_point) * scale, per tensor (0-d arrays) or along one axis (1-D arrays)."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int
    explicit_zero_point: bool

    @property
    def per_tensor(self) -> bool:
        """True when one scale and one zero point serve the whole tensor."""
        return self.scale.size == 1 and self.zero_point.size == 1

    @property
    def one_scale(self) -> np.float32:
        """The scale of a per-tensor quantisation."""
        return np.float32(self.scale.reshape(-1)[0])

    @property
    def one_zero_point(self) -> int:
        """The zero point of a per-tensor quantisation."""
        return int(self.zero_point.reshape(-1)[0])


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """What an output quantiser does to a fused kernel's sums: scale, zero point, the code type and its
    range.
    """

    scale: np.float32
    zero_point: int
    low: int
    high: int
    dtype: np.dtype[Any]

    @property
    def output(self) -> Output:
        """The quantiser as a definition of arithmetic reads it."""
        return Output(
            scale=self.scale,
            zero_point=self.zero_point,
            low=self.low,
            high=self.high,
            lowest=STORAGE_RANGE[self.dtype.name][0],
        )


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What is known of a tensor without running.

    Attributes:
        kind: see `Kind`.
        low: smallest code that can occur (codes and dequantised).
        high: largest code that can occur.
        dtype: NumPy type of the codes.
        quantisation: of a dequantised tensor.
        constant: the same for every input.
        integers: floats that are integers in [low, high].
    """

    kind: Kind
    low: int = 0
    high: int = 0
    dtype: np.dtype[Any] | None = None
    quantisation: Quantisation | None = None
    constant: bool = False
    integers: bool = False


@dataclass(frozen=True, kw_only=True)
class Dequantised:
    """Codes with their quantisation, not turned into floats yet."""

    codes: Array
    quantisation: Quantisation


@dataclass(frozen=True)
class Unknown:
    """A value behind a float island."""


UNKNOWN = Unknown()

Value = Array | Dequantised | Unknown


def as_array(value: Array | Dequantised) -> Array:
    """The tensor as ONNX sees it: floats for a dequantised value."""
    if not isinstance(value, Dequantised):
        return value
    quantisation = value.quantisation
    if quantisation.per_tensor:
        return integer.dequantise(
            value.codes, scale=quantisation.one_scale, zero_point=quantisation.one_zero_point
        )
    shape = [1] * value.codes.ndim
    shape[quantisation.axis] = -1
    zero_point = quantisation.zero_point
    return integer.dequantise(
        value.codes,
        scale=quantisation.scale.reshape(shape),
        zero_point=zero_point if zero_point.size == 1 else zero_point.reshape(shape),
    )
