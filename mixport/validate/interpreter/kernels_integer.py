"""The fused integer operators, each a few calls into mixport.arithmetic.integer: codes in, codes out (or the
exact floats of the sums).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic import integer
from mixport.records.errors import UnsupportedModelError
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.values import Dequantised, Saturation

#: Images are convolved in chunks whose float64 working set stays near this many elements.
_CHUNK_ELEMENTS = 1 << 24

FusedKernel = Callable[[Node, Saturation | None, Sequence["Array | Dequantised | None"]], Array]


def convolution(
    node: Node, saturation: Saturation | None, args: Sequence[Array | Dequantised | None]
) -> Array:
    """QLinearConv, 1-D and 2-D."""
    assert saturation is not None
    x, w, bias = _dequantised(args[0]), _dequantised(args[1]), _bias(args, 2)
    rank = w.codes.ndim - 2
    attributes = node.attributes
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    pads = attributes.get("pads", (0,) * 2 * rank)
    weights = _centred_weights(w)
    codes = x.codes
    if rank == 1:
        codes, weights = codes[:, :, None, :], weights[:, :, None, :]
        strides, dilations, pads = (1, *strides), (1, *dilations), (0, pads[0], 0, pads[1])
    multiplier = integer.conv_multiplier(
        x.quantisation.one_scale, w.quantisation.scale, saturation.scale
    ).reshape(1, -1, 1, 1)
    per_image = max(
        1, int(np.prod(codes.shape[1:])) * 2 + weights.shape[0] * codes.shape[2] * codes.shape[3] * 2
    )
    chunk = max(1, _CHUNK_ELEMENTS // per_image)
    parts: list[Array] = []
    for start in range(0, max(1, codes.shape[0]), chunk):
        acc = integer.conv_accumulate(
            codes[start : start + chunk],
            weights,
            x_zero_point=x.quantisation.one_zero_point,
            strides=(strides[0], strides[1]),
            pads=(pads[0], pads[1], pads[2], pads[3]),
            dilations=(dilations[0], dilations[1]),
            groups=attributes.get("group", 1),
        )
        acc = acc if bias is None else acc + bias.reshape(1, -1, 1, 1)
        parts.append(_finish(node, acc, saturation, multiplier=multiplier))
    result = np.concatenate(parts)
    return result[:, :, 0, :] if rank == 1 else result


def gemm(node: Node, saturation: Saturation | None, args: Sequence[Array | Dequantised | None]) -> Array:
    """QGemm: codes, or float32(acc) * float32(x_scale * w_scale) where no quantiser follows."""
    x, w, bias = _dequantised(args[0]), _dequantised(args[1]), _bias(args, 2)
    weights = _centred_weights(w)
    right = weights.T if node.attributes.get("transB", 0) else weights
    acc = integer.matmul_accumulate(x.codes, right, a_zero_point=x.quantisation.one_zero_point)
    acc = acc if bias is None else acc + bias
    return _finish_product(node, acc, saturation, x.quantisation.one_scale, w.quantisation.scale)


def matmul(node: Node, saturation: Saturation | None, args: Sequence[Array | Dequantised | None]) -> Array:
    """QLinearMatMul and MatMulIntegerToFloat: two code tensors, either of them may be constant."""
    a, b = _dequantised(args[0]), _dequantised(args[1])
    acc = integer.matmul_accumulate(a.codes, _centred_weights(b), a_zero_point=a.quantisation.one_zero_point)
    return _finish_product(node, acc, saturation, a.quantisation.one_scale, b.quantisation.scale)


def add(node: Node, saturation: Saturation | None, args: Sequence[Array | Dequantised | None]) -> Array:
    """QLinearAdd with integer ratios."""
    assert saturation is not None
    a, b = _dequantised(args[0]), _dequantised(args[1])
    ratios = [integer.add_ratio(float(v.quantisation.one_scale), float(saturation.scale)) for v in (a, b)]
    assert ratios[0] is not None and ratios[1] is not None
    return integer.add(
        a.codes,
        b.codes,
        a_zero_point=a.quantisation.one_zero_point,
        b_zero_point=b.quantisation.one_zero_point,
        a_ratio=ratios[0],
        b_ratio=ratios[1],
        zero_point=saturation.zero_point,
        qmin=saturation.low,
        qmax=saturation.high,
    ).astype(saturation.dtype)


def multiply(node: Node, saturation: Saturation | None, args: Sequence[Array | Dequantised | None]) -> Array:
    """QLinearMul."""
    assert saturation is not None
    a, b = _dequantised(args[0]), _dequantised(args[1])
    return integer.multiply(
        a.codes,
        b.codes,
        a_zero_point=a.quantisation.one_zero_point,
        b_zero_point=b.quantisation.one_zero_point,
        multiplier=integer.conv_multiplier(
            a.quantisation.one_scale, b.quantisation.one_scale, saturation.scale
        ),
        zero_point=saturation.zero_point,
        qmin=saturation.low,
        qmax=saturation.high,
    ).astype(saturation.dtype)


def average(node: Node, saturation: Saturation | None, args: Sequence[Array | Dequantised | None]) -> Array:
    """QLinearGlobalAveragePool over the two last axes of [N, C, H, W]."""
    assert saturation is not None
    x = _dequantised(args[0])
    if x.codes.ndim != 4:
        raise UnsupportedModelError(
            f"node {node.name} (GlobalAveragePool): input has {x.codes.ndim} axes, allowed 4"
        )
    acc = integer.spatial_sum(x.codes, x_zero_point=x.quantisation.one_zero_point)
    count = x.codes.shape[2] * x.codes.shape[3]
    return _finish(
        node,
        acc,
        saturation,
        multiplier=integer.average_multiplier(x.quantisation.one_scale, saturation.scale, count),
    )


def quantise(x: Array, saturation: Saturation) -> Array:
    """QuantizeLinear of floats."""
    codes = integer.quantise(
        x, scale=saturation.scale, zero_point=saturation.zero_point, qmin=saturation.low, qmax=saturation.high
    )
    return codes.astype(saturation.dtype)


FUSED: Mapping[str, FusedKernel] = MappingProxyType(
    {
        "conv": convolution,
        "gemm": gemm,
        "matmul": matmul,
        "add": add,
        "multiply": multiply,
        "average": average,
    }
)


def _dequantised(value: Array | Dequantised | None) -> Dequantised:
    assert isinstance(value, Dequantised), "the plan lets a fused kernel read dequantised codes only"
    return value


def _bias(args: Sequence[Array | Dequantised | None], position: int) -> NDArray[np.int64] | None:
    # The kernels add the stored integers to their sums, whatever scale the file gives for them.
    value = args[position] if position < len(args) else None
    return None if value is None else _dequantised(value).codes.astype(np.int64)


def _centred_weights(w: Dequantised) -> NDArray[np.int64]:
    zero_point = w.quantisation.zero_point
    if zero_point.size == 1:
        return w.codes.astype(np.int64) - int(zero_point.reshape(-1)[0])
    shape = [1] * w.codes.ndim
    shape[w.quantisation.axis] = -1
    return w.codes.astype(np.int64) - zero_point.reshape(shape)


def _finish_product(
    node: Node,
    acc: integer.Accumulator,
    saturation: Saturation | None,
    x_scale: np.float32,
    w_scale: NDArray[Any],
) -> Array:
    scale = w_scale if w_scale.size > 1 else np.float32(w_scale.reshape(-1)[0])
    if saturation is not None:
        return _finish(
            node, acc, saturation, multiplier=integer.conv_multiplier(x_scale, scale, saturation.scale)
        )
    _check(node, acc)
    return acc.astype(np.float32) * np.asarray(x_scale * scale, np.float32)


def _finish(
    node: Node, acc: integer.Accumulator, saturation: Saturation, *, multiplier: integer.Float
) -> Array:
    _check(node, acc)
    codes = integer.requantise(
        acc,
        multiplier=multiplier,
        zero_point=saturation.zero_point,
        qmin=saturation.low,
        qmax=saturation.high,
    )
    return codes.astype(saturation.dtype)


def _check(node: Node, acc: integer.Accumulator) -> None:
    if not integer.check_accumulator(acc):
        raise UnsupportedModelError(
            f"node {node.name} ({node.op}): a sum reaches {np.abs(acc).max()}, which int32 does not hold",
            hint="quantise this layer with fewer bits or a larger weight scale",
        )
