"""The fused integer operators: exact sums by mixport.arithmetic.integer, their codes by a definition of
mixport.arithmetic.definitions (or the exact floats of the sums).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic import integer
from mixport.arithmetic.definitions import Definition, Layer, Operand
from mixport.records.errors import UnsupportedModelError
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.values import Dequantised, Saturation

#: Images are convolved in chunks whose float64 working set stays near this many elements.
_CHUNK_ELEMENTS = 1 << 24

Args = Sequence["Array | Dequantised | None"]
FusedKernel = Callable[[Definition, Node, Saturation | None, Args], Array]


def convolution(definition: Definition, node: Node, saturation: Saturation | None, args: Args) -> Array:
    """Conv, 1-D and 2-D."""
    assert saturation is not None
    x, w, bias = _dequantised(args[0]), _dequantised(args[1]), _bias(args, 2)
    rank = w.codes.ndim - 2
    attributes = node.attributes
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    pads = attributes.get("pads", (0,) * 2 * rank)
    groups = attributes.get("group", 1)
    weights = _centred_weights(w)
    codes = x.codes
    if rank == 1:
        codes, weights = codes[:, :, None, :], weights[:, :, None, :]
        strides, dilations, pads = (1, *strides), (1, *dilations), (0, pads[0], 0, pads[1])
    layer = Layer(
        x_scale=x.quantisation.one_scale,
        w_scale=w.quantisation.scale.reshape(-1),
        bias=bias,
        axis=1,
        strided_depthwise=weights.shape[1] == 1 and groups > 1 and max(strides) > 1,
    )
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
            groups=groups,
        )
        acc = acc if bias is None else acc + bias.reshape(1, -1, 1, 1)
        _check(node, acc)
        parts.append(definition.layer(acc, layer, saturation.output).astype(saturation.dtype))
    result = np.concatenate(parts)
    return result[:, :, 0, :] if rank == 1 else result


def gemm(definition: Definition, node: Node, saturation: Saturation | None, args: Args) -> Array:
    """Gemm: codes, or float32(acc) * float32(x_scale * w_scale) where no quantiser follows."""
    x, w, bias = _dequantised(args[0]), _dequantised(args[1]), _bias(args, 2)
    weights = _centred_weights(w)
    right = weights.T if node.attributes.get("transB", 0) else weights
    acc = integer.matmul_accumulate(x.codes, right, a_zero_point=x.quantisation.one_zero_point)
    acc = acc if bias is None else acc + bias
    return _finish_product(definition, node, acc, saturation, x, w, bias)


def matmul(definition: Definition, node: Node, saturation: Saturation | None, args: Args) -> Array:
    """MatMul: two code tensors, either of them may be constant; codes, or floats as `gemm`."""
    a, b = _dequantised(args[0]), _dequantised(args[1])
    acc = integer.matmul_accumulate(a.codes, _centred_weights(b), a_zero_point=a.quantisation.one_zero_point)
    return _finish_product(definition, node, acc, saturation, a, b, None)


def add(definition: Definition, node: Node, saturation: Saturation | None, args: Args) -> Array:
    """Add of two code tensors."""
    assert saturation is not None
    a, b = (operand_of(_dequantised(arg)) for arg in args[:2])
    return definition.add(a, b, saturation.output).astype(saturation.dtype)


def multiply(definition: Definition, node: Node, saturation: Saturation | None, args: Args) -> Array:
    """Mul of two code tensors."""
    assert saturation is not None
    a, b = (operand_of(_dequantised(arg)) for arg in args[:2])
    return definition.multiply(a, b, saturation.output).astype(saturation.dtype)


def average(definition: Definition, node: Node, saturation: Saturation | None, args: Args) -> Array:
    """GlobalAveragePool over the two last axes of [N, C, H, W]."""
    assert saturation is not None
    x = _dequantised(args[0])
    if x.codes.ndim != 4:
        raise UnsupportedModelError(
            f"node {node.name} (GlobalAveragePool): input has {x.codes.ndim} axes, allowed 4"
        )
    acc = integer.spatial_sum(x.codes, x_zero_point=x.quantisation.one_zero_point)
    _check(node, acc)
    codes = definition.average(
        acc,
        count=x.codes.shape[2] * x.codes.shape[3],
        x_scale=x.quantisation.one_scale,
        output=saturation.output,
    )
    return codes.astype(saturation.dtype)


def quantise(x: Array, saturation: Saturation) -> Array:
    """QuantizeLinear of floats."""
    codes = integer.quantise(
        x, scale=saturation.scale, zero_point=saturation.zero_point, qmin=saturation.low, qmax=saturation.high
    )
    return codes.astype(saturation.dtype)


def rescale(definition: Definition, x: Dequantised, saturation: Saturation) -> Array:
    """DequantizeLinear and QuantizeLinear with nothing but movement between them."""
    return definition.rescale(operand_of(x), saturation.output).astype(saturation.dtype)


def operand_of(value: Dequantised) -> Operand:
    """Codes of one scale as a definition reads them."""
    return Operand(
        codes=value.codes,
        scale=value.quantisation.one_scale,
        zero_point=value.quantisation.one_zero_point,
        lowest=int(np.iinfo(value.codes.dtype).min),
    )


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
    definition: Definition,
    node: Node,
    acc: integer.Accumulator,
    saturation: Saturation | None,
    x: Dequantised,
    w: Dequantised,
    bias: NDArray[np.int64] | None,
) -> Array:
    _check(node, acc)
    scale = w.quantisation.scale.reshape(-1)
    if saturation is not None:
        layer = Layer(x_scale=x.quantisation.one_scale, w_scale=scale, bias=bias, axis=-1)
        return definition.layer(acc, layer, saturation.output).astype(saturation.dtype)
    return acc.astype(np.float32) * np.asarray(x.quantisation.one_scale * scale, np.float32)


def _check(node: Node, acc: integer.Accumulator) -> None:
    if not integer.check_accumulator(acc):
        raise UnsupportedModelError(
            f"node {node.name} ({node.op}): a sum reaches {np.abs(acc).max()}, which int32 does not hold",
            hint="quantise this layer with fewer bits or a larger weight scale",
        )
