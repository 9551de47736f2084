"""One output element of a fused unit recomputed from the codes it reads: its window, its exact sum, its value
before rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic import integer
from mixport.records.validation_report import Operand
from mixport.validate.interpreter.fused_units import CodeInput, FusedUnit
from mixport.validate.interpreter.graph import Array

Codes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Element:
    """What an output element is made of.

    Attributes:
        operands: the code tensors read, with the code where it is one.
        accumulator: exact sum with the bias; None for operators without one.
        exact: value before rounding, in output codes (or floats where no quantiser follows); None where it
            cannot be told.
        codes: [..., K] raw codes of the window with the channels last, None without a constant weight.
        weights: the centred weights in the same order.
        rest: what the sum holds besides codes times weights: bias minus zero point times weights.
        unfused: output code by float32 arithmetic, as a runtime that fuses nothing computes it; None where it
            is not modelled.
    """

    operands: tuple[Operand, ...]
    accumulator: int | None = None
    exact: float | None = None
    codes: Codes | None = None
    weights: Codes | None = None
    rest: int = 0
    unfused: float | None = None


def element_of(unit: FusedUnit, feeds: Mapping[str, Array], index: tuple[int, ...]) -> Element:
    """Recompute one element.

    Args:
        unit: the operator.
        feeds: codes of its inputs by name.
        index: position in its output.
    """
    if unit.kind in ("add", "multiply", "requantise", "table", "function") or unit.uncut:
        return _pointwise(unit, feeds, index)
    if unit.kind == "average":
        source = unit.inputs[0]
        codes = feeds[source.name][index[0], index[1]].astype(np.int64)
        total = int((codes - source.zero_point).sum())
        multiplier = integer.average_multiplier(source.scale, _scale(unit), codes.size)
        return Element(
            operands=(_many(source, codes.size),),
            accumulator=total,
            exact=total * float(multiplier) + _zero(unit),
        )
    if unit.weight is None:
        return _product(unit, feeds, index)
    return _layer(unit, feeds[unit.inputs[0].name], index)


def _pointwise(unit: FusedUnit, feeds: Mapping[str, Array], index: tuple[int, ...]) -> Element:
    operands = tuple(_one(source, feeds[source.name], index) for source in unit.inputs)
    if unit.uncut or unit.kind in ("table", "function") or any(operand.code is None for operand in operands):
        return Element(operands=operands)
    reals = [
        (operand.code or 0) - source.zero_point for operand, source in zip(operands, unit.inputs, strict=True)
    ]
    scales = [float(source.scale) for source in unit.inputs]
    if unit.kind == "multiply":
        total = int(np.prod(reals))
        return Element(
            operands=operands,
            accumulator=total,
            exact=total * float(np.prod(scales)) / float(_scale(unit)) + _zero(unit),
            unfused=None,
        )
    real = sum(value * scale for value, scale in zip(reals, scales, strict=True))
    return Element(operands=operands, exact=real / float(_scale(unit)) + _zero(unit))


def _product(unit: FusedUnit, feeds: Mapping[str, Array], index: tuple[int, ...]) -> Element:
    a, b = unit.inputs
    left, right = feeds[a.name], feeds[b.name]
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    row = np.broadcast_to(left, (*batch, *left.shape[-2:]))[(*index[:-2], index[-2])].astype(np.int64)
    column = np.broadcast_to(right, (*batch, *right.shape[-2:]))[
        (*index[:-2], slice(None), index[-1])
    ].astype(np.int64)
    total = int(((row - a.zero_point) * (column - b.zero_point)).sum())
    multiplier = float(integer.conv_multiplier(a.scale, b.scale, _scale(unit)))
    return Element(
        operands=(_many(a, row.size), _many(b, column.size)),
        accumulator=total,
        exact=total * multiplier + _zero(unit),
    )


def _layer(unit: FusedUnit, x: Array, index: tuple[int, ...]) -> Element:
    assert unit.weight is not None and unit.weight_scale is not None
    source = unit.inputs[0]
    channel = index[1] if unit.kind == "conv" else index[-1]
    if unit.kind == "conv":
        codes = np.moveaxis(_window(unit, x, index), 0, -1)
        weights = np.moveaxis(unit.weight[channel], 0, -1)
    else:
        codes, weights = x[index[:-1]].astype(np.int64), unit.weight[channel]
    scale = np.float32(np.broadcast_to(unit.weight_scale, (unit.weight.shape[0],))[channel])
    bias = 0 if unit.bias is None else int(np.broadcast_to(unit.bias, (unit.weight.shape[0],))[channel])
    rest = bias - source.zero_point * int(weights.sum())
    total = int((codes * weights).sum()) + rest
    multiplier = float(integer.conv_multiplier(source.scale, scale, _scale(unit)))
    real = (
        (codes - source.zero_point).astype(np.float32) * source.scale * (weights.astype(np.float32) * scale)
    ).sum(dtype=np.float32)
    unfused = None
    if unit.saturation is not None:
        quotient = (real + np.float32(bias) * (source.scale * scale)) / unit.saturation.scale
        unfused = float(np.clip(np.rint(quotient) + unit.saturation.zero_point, unit.low, unit.high))
    return Element(
        operands=(_many(source, codes.size),),
        accumulator=total,
        exact=total * multiplier + _zero(unit),
        codes=codes,
        weights=weights,
        rest=rest,
        unfused=unfused,
    )


def _window(unit: FusedUnit, x: Array, index: tuple[int, ...]) -> Codes:
    """[C / groups, *kernel] codes that one output position of a convolution reads; padding reads the zero
    point.
    """
    assert unit.weight is not None
    kernel, attributes = unit.weight.shape[2:], unit.node.attributes
    rank, groups = len(kernel), int(attributes.get("group", 1))
    strides: tuple[int, ...] = attributes.get("strides", (1,) * rank)
    dilations: tuple[int, ...] = attributes.get("dilations", (1,) * rank)
    pads: tuple[int, ...] = attributes.get("pads", (0,) * 2 * rank)
    first = index[1] // (unit.weight.shape[0] // groups) * unit.weight.shape[1]
    codes: Codes = x[index[0], first : first + unit.weight.shape[1]].astype(np.int64)
    for axis in range(rank):
        start = index[2 + axis] * strides[axis] - pads[axis]
        places: Codes = start + dilations[axis] * np.arange(kernel[axis], dtype=np.int64)
        inside = (places >= 0) & (places < codes.shape[1 + axis])
        taken = np.take(codes, np.clip(places, 0, codes.shape[1 + axis] - 1), axis=1 + axis)
        shape = [1] * taken.ndim
        shape[1 + axis] = -1
        codes = np.where(inside.reshape(shape), taken, unit.inputs[0].zero_point)
    return codes


def _one(source: CodeInput, codes: Array, index: tuple[int, ...]) -> Operand:
    """The code that broadcasting reads at a position of the output."""
    if codes.ndim > len(index):
        return Operand(name=source.name, code=None, count=codes.size)
    tail = index[len(index) - codes.ndim :]
    place = tuple(0 if size == 1 else position for position, size in zip(tail, codes.shape, strict=True))
    if any(position >= size for position, size in zip(place, codes.shape, strict=True)):
        return Operand(name=source.name, code=None, count=codes.size)
    return Operand(name=source.name, code=int(codes[place]), count=1)


def _many(source: CodeInput, count: int) -> Operand:
    return Operand(name=source.name, code=None, count=count)


def _scale(unit: FusedUnit) -> np.float32:
    return np.float32(1) if unit.saturation is None else unit.saturation.scale


def _zero(unit: FusedUnit) -> int:
    return 0 if unit.saturation is None else unit.saturation.zero_point
