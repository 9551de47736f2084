"""The integers of a file's fused layers, as a static proof needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixport.validate.interpreter import Interpreter
from mixport.validate.units import CodeInput, FusedUnit


@dataclass(frozen=True, kw_only=True)
class LayerIntegers:
    """What one Conv, Gemm or MatMul sums up.

    Attributes:
        site: name of the layer's output.
        op: ONNX operator.
        weights: centred codes, output channels first; None for a product of two code tensors.
        bias: codes [O], None without one.
        left: (low, high, zero point) of the input codes.
        right: the same of the second code tensor, None where there are weights.
        products: products in one sum.
    """

    site: str
    op: str
    weights: NDArray[np.int64] | None
    bias: NDArray[np.int64] | None
    left: tuple[int, int, int]
    right: tuple[int, int, int] | None
    products: int


class Prover(Protocol):
    """Static proofs over a file's layers, e.g. `mixport.proof.bounds.prove`.

    Returns plain data; `sites` holds one record a layer with `site`, `magnitude`, `fits_int32` and `pair_safe`.
    """

    def __call__(self, layers: Sequence[LayerIntegers], /) -> Mapping[str, Any]:
        """Prove, or say what does not hold."""
        ...


def layers_of(interpreter: Interpreter, *, input_shape: tuple[int, ...]) -> tuple[LayerIntegers, ...]:
    """Integers of every Conv, Gemm and MatMul that runs on integers, in graph order.

    A product of two code tensors is left out where its inner size cannot be inferred.

    Args:
        interpreter: of the file.
        input_shape: of the model's input; inner sizes of products follow from it.
    """
    shapes = interpreter.inferred_shapes(input_shape)
    found = (_layer(unit, shapes) for unit in interpreter.units if unit.kind in ("conv", "gemm", "matmul"))
    return tuple(layer for layer in found if layer is not None)


def _layer(unit: FusedUnit, shapes: Mapping[str, tuple[int | None, ...]]) -> LayerIntegers | None:
    source = unit.inputs[0]
    if unit.weight is not None:
        return LayerIntegers(
            site=unit.output,
            op=unit.node.op,
            weights=unit.weight,
            bias=unit.bias,
            left=_range(source),
            right=None,
            products=int(np.prod(unit.weight.shape[1:])),
        )
    products = (shapes.get(source.name) or (None,))[-1]
    if products is None or len(unit.inputs) < 2:
        return None
    return LayerIntegers(
        site=unit.output,
        op=unit.node.op,
        weights=None,
        bias=None,
        left=_range(source),
        right=_range(unit.inputs[1]),
        products=products,
    )


def _range(source: CodeInput) -> tuple[int, int, int]:
    return source.low, source.high, source.zero_point
