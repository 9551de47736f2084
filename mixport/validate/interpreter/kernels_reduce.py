"""Reductions whose result does not depend on their order: maxima, and sums of integers that the float type
holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mixport.arithmetic.portable_float import FLOAT32_INTEGERS, FLOAT64_INTEGERS
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.kernels_movement import Kernel


def _reduction(function: Callable[..., Any]) -> Kernel:
    def kernel(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
        x, axes = (*args, None)[:2]
        assert x is not None
        named = node.attributes.get("axes") if axes is None else axes.reshape(-1)
        over = None if named is None else tuple(int(axis) for axis in named)
        return (np.asarray(function(x, axis=over, keepdims=bool(node.attributes.get("keepdims", 1)))),)

    return kernel


def _exact_sum(x: Array, *, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    """ONNX ReduceSum (13). Raises ValueError where the order of the sum could matter."""
    limit = FLOAT32_INTEGERS if x.dtype == np.float32 else FLOAT64_INTEGERS
    reach = np.abs(x).sum(axis=axis, dtype=np.float64).max(initial=0.0) / _unit(x)
    if not np.isfinite(x).all() or not reach <= limit:
        raise ValueError(
            f"a sum of {x.dtype} values that reaches {reach:.0f} times what all are multiples of, "
            f"allowed {limit}"
        )
    return x.sum(axis=axis, dtype=x.dtype, keepdims=keepdims)


def _unit(x: Array) -> float:
    """The largest power of two that all values are multiples of, at most 1: their sum is exact where it holds
    in so many units.
    """
    mantissas, exponents = np.frexp(np.abs(x[x != 0]).astype(np.float64))
    if mantissas.size == 0:
        return 1.0
    whole = (mantissas * 2.0**53).astype(np.int64)
    return min(1.0, float(np.ldexp((whole & -whole).astype(np.float64), exponents - 53).min()))


#: ReduceMax (18, and 13 with its axes as an attribute) and ReduceSum (13).
REDUCTIONS: Mapping[str, Kernel] = MappingProxyType(
    {"ReduceMax": _reduction(np.max), "ReduceSum": _reduction(_exact_sum)}
)
