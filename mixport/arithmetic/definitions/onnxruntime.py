"""ONNX Runtime's CPU kernels: float32 factors, one rounding, half to even. See mixport.arithmetic.integer for
the versions that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixport.arithmetic import integer
from mixport.arithmetic.definitions.definition import Layer, Operand, Output
from mixport.arithmetic.integer import Accumulator


@dataclass(frozen=True)
class OnnxRuntime:
    """A `Definition`."""

    name: str = "onnxruntime"
    float_products: bool = True

    def refused_add(self, a: Operand, b: Operand, output: Output) -> str:
        """Runtimes round other sums than those of whole multiples of the output's scale differently."""
        for which, one in (("first", a), ("second", b)):
            if integer.add_ratio(float(one.scale), float(output.scale)) is None:
                return (
                    f"scale {one.scale!s} of the {which} operand is not an integer multiple of the output "
                    f"scale {output.scale!s}, and runtimes round such sums differently"
                )
        return ""

    def layer(self, sums: Accumulator, layer: Layer, output: Output) -> Accumulator:
        """QLinearConv, QGemm, QLinearMatMul."""
        multiplier = integer.conv_multiplier(layer.x_scale, layer.w_scale, output.scale)
        return self._requantised(sums, layer.along(multiplier, rank=sums.ndim), output)

    def average(self, sums: Accumulator, *, count: int, x_scale: np.float32, output: Output) -> Accumulator:
        """QLinearGlobalAveragePool."""
        return self._requantised(sums, integer.average_multiplier(x_scale, output.scale, count), output)

    def add(self, a: Operand, b: Operand, output: Output) -> Accumulator:
        """QLinearAdd with integer ratios. Raises ValueError where `refused_add` has a reason."""
        ratios = [integer.add_ratio(float(one.scale), float(output.scale)) for one in (a, b)]
        if ratios[0] is None or ratios[1] is None:
            raise ValueError(self.refused_add(a, b, output))
        return integer.add(
            a.codes,
            b.codes,
            a_zero_point=a.zero_point,
            b_zero_point=b.zero_point,
            a_ratio=ratios[0],
            b_ratio=ratios[1],
            zero_point=output.zero_point,
            qmin=output.low,
            qmax=output.high,
        )

    def multiply(self, a: Operand, b: Operand, output: Output) -> Accumulator:
        """QLinearMul."""
        return integer.multiply(
            a.codes,
            b.codes,
            a_zero_point=a.zero_point,
            b_zero_point=b.zero_point,
            multiplier=integer.conv_multiplier(a.scale, b.scale, output.scale),
            zero_point=output.zero_point,
            qmin=output.low,
            qmax=output.high,
        )

    def rescale(self, x: Operand, output: Output) -> Accumulator:
        """Two float operators, as ONNX defines them."""
        real = integer.dequantise(x.codes, scale=x.scale, zero_point=x.zero_point)
        return integer.quantise(
            real, scale=output.scale, zero_point=output.zero_point, qmin=output.low, qmax=output.high
        )

    def _requantised(self, sums: Accumulator, multiplier: integer.Float, output: Output) -> Accumulator:
        return integer.requantise(
            sums, multiplier=multiplier, zero_point=output.zero_point, qmin=output.low, qmax=output.high
        )
