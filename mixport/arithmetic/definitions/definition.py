"""What a device computes where a file says Conv, Add or GlobalAveragePool between DequantizeLinear and
QuantizeLinear: one executable definition a device, in NumPy.

Sums are exact on every device that is known; what differs is how they become codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.integer import Accumulator, Codes


@dataclass(frozen=True, kw_only=True)
class Operand:
    """Codes that an elementwise operator reads.

    Attributes:
        codes: integers, any shape.
        scale: float32 value.
        zero_point: of the codes.
        lowest: smallest value of the type that holds them.
    """

    codes: Codes
    scale: np.float32
    zero_point: int
    lowest: int = 0


@dataclass(frozen=True, kw_only=True)
class Output:
    """The quantiser behind an operator.

    Attributes:
        scale: float32 value.
        zero_point: of the codes.
        low: smallest code.
        high: largest code.
        lowest: smallest value of the type that holds them: 0 of uint8, -128 of int8.
    """

    scale: np.float32
    zero_point: int
    low: int
    high: int
    lowest: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer whose sums become codes.

    Attributes:
        x_scale: float32 value of what it reads.
        w_scale: float32 [C] of its weights, or [1] for all of them.
        bias: int64 [C] codes that are in the sums already; None without one.
        axis: of the channels in the sums.
        strided_depthwise: a depthwise convolution with a stride above 1.
    """

    x_scale: np.float32
    w_scale: NDArray[np.float32]
    bias: NDArray[np.int64] | None
    axis: int
    strided_depthwise: bool = False

    def along(self, values: NDArray[Any], *, rank: int) -> NDArray[Any]:
        """Values of the channels, [C] or [1], in a shape that broadcasts over sums of this rank."""
        shape = [1] * rank
        shape[self.axis] = -1
        return values.reshape(shape)


class Definition(Protocol):
    """Arithmetic of one device. Every method returns int64 codes, saturated to the output's range."""

    @property
    def name(self) -> str:
        """As a target names it."""
        ...

    @property
    def float_products(self) -> bool:
        """A matrix product without a quantiser behind it gives the exact floats of its sums."""
        ...

    def refused_add(self, a: Operand, b: Operand, output: Output) -> str:
        """Why the codes of such a sum are not defined; empty where they are."""
        ...

    def layer(self, sums: Accumulator, layer: Layer, output: Output) -> Accumulator:
        """Codes of a convolution or a matrix product.

        Args:
            sums: exact, zero points taken off and bias added, any shape.
            layer: its scales and bias.
            output: quantiser.
        """
        ...

    def average(self, sums: Accumulator, *, count: int, x_scale: np.float32, output: Output) -> Accumulator:
        """Codes of a global average: `sums` of `count` values each, zero point taken off."""
        ...

    def add(self, a: Operand, b: Operand, output: Output) -> Accumulator:
        """Codes of an elementwise sum."""
        ...

    def multiply(self, a: Operand, b: Operand, output: Output) -> Accumulator:
        """Codes of an elementwise product."""
        ...

    def rescale(self, x: Operand, output: Output) -> Accumulator:
        """Codes at another scale: DequantizeLinear and QuantizeLinear with nothing between them."""
        ...
