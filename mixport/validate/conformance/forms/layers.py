"""Layers with constant weights: Conv and Gemm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import crafted
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.conformance.forms.products import power_of_two_below, wide_output
from mixport.validate.interpreter.graph import Array

Weights = Literal["pair-safe", "repaired", "full"]
"""8-bit weights: all small, repaired just where two products meet in 16 bits, or of the full range."""

_PAIR_LIMIT = 128
"""255 * 128 is the largest sum of two products of uint8 codes that int16 holds."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One graph of a layer: codes in, codes (or floats) out."""

    name: str
    shape: tuple[int, ...] = (8, 8, 3, 3)
    bits: int = 8
    weights: Weights = "pair-safe"
    activation_bits: int = 8
    x_zero_point: int = 0
    y_zero_point: int = 0
    clip: int | None = None
    power_of_two: bool = False
    bias: bool = True
    relu: bool = False
    float_output: bool = False
    wide_output: bool = False
    attributes: Mapping[str, Any] = field(default_factory=lambda: {"pads": [1, 1, 1, 1]})


_CONV = (
    _Layer(name="plain"),
    _Layer(name="odd-zero-points", x_zero_point=117, y_zero_point=131, clip=None),
    _Layer(name="exact-ties", x_zero_point=3, y_zero_point=5, power_of_two=True),
    _Layer(name="odd-channels", shape=(7, 5, 3, 3), x_zero_point=129, y_zero_point=127),
    _Layer(name="one-element", shape=(1, 1, 1, 1), x_zero_point=1, bias=False, attributes={}),
    _Layer(
        name="strides-and-dilations",
        shape=(6, 4, 3, 2),
        x_zero_point=9,
        attributes={"strides": [2, 2], "pads": [0, 0, 1, 1], "dilations": [1, 2]},
    ),
    _Layer(name="four-bit-activations", activation_bits=4, clip=15, relu=True),
    _Layer(name="seven-bit-activations", activation_bits=7, clip=127),
    _Layer(name="pointwise", shape=(33, 64, 1, 1), x_zero_point=128, y_zero_point=100, attributes={}),
    _Layer(name="one-dimension", shape=(8, 6, 5), y_zero_point=77, attributes={"pads": [2, 2]}),
)

_DEPTHWISE = tuple(
    replace(layer, name=f"{layer.name}", shape=shape, attributes={"group": shape[0], **attributes})
    for layer, shape, attributes in (
        (_CONV[0], (16, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
        (_CONV[1], (16, 1, 5, 5), {"pads": [2, 2, 2, 2]}),
        (_CONV[2], (8, 1, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (_CONV[3], (13, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
        (_CONV[6], (24, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
        (replace(_CONV[0], name="four-bit-weights", bits=4), (16, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
        (replace(_CONV[0], name="two-bit-weights", bits=2), (16, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
    )
)

_GROUPED = tuple(
    replace(layer, shape=shape, attributes={"group": groups, "pads": [1, 1, 1, 1]})
    for layer, shape, groups in (
        (_CONV[0], (8, 4, 3, 3), 2),
        (_CONV[1], (12, 8, 3, 3), 3),
        (_CONV[2], (8, 2, 3, 3), 4),
        (_CONV[3], (15, 5, 3, 3), 3),
        (_CONV[6], (16, 4, 3, 3), 4),
        (replace(_CONV[0], name="four-bit-weights", bits=4), (8, 4, 3, 3), 2),
        (replace(_CONV[0], name="two-bit-weights", bits=2), (8, 4, 3, 3), 2),
        (replace(_CONV[0], name="channel-multiplier"), (16, 1, 3, 3), 8),
    )
)

_GEMM = (
    _Layer(name="plain", shape=(10, 64), attributes={}),
    _Layer(name="odd-zero-points", shape=(16, 33), x_zero_point=117, y_zero_point=131, attributes={}),
    _Layer(
        name="exact-ties", shape=(16, 48), x_zero_point=3, y_zero_point=5, power_of_two=True, attributes={}
    ),
    _Layer(name="odd-channels", shape=(7, 13), x_zero_point=129, y_zero_point=127, attributes={}),
    _Layer(name="one-element", shape=(1, 1), x_zero_point=1, bias=False, attributes={}),
    _Layer(name="four-bit-activations", shape=(32, 96), activation_bits=4, clip=15, relu=True, attributes={}),
    _Layer(name="seven-bit-activations", shape=(24, 70), activation_bits=7, clip=127, attributes={}),
)


def _layer_case(layer: _Layer, rng: np.random.Generator) -> FormCase:
    model = Model()
    rank = len(layer.shape)
    codes = model.input("x", np.uint8, rank)
    high = 2**layer.activation_bits - 1
    if layer.activation_bits < 8:
        codes = model.clip(codes, (0, high))
    weight = _weights(layer, rng)
    x_scale, w_scale, y_scale = _scales(layer, weight, high, rng)
    bias_scale = np.asarray(x_scale * w_scale, np.float32)
    inputs = [
        model.dequantise(codes, float(x_scale), layer.x_zero_point),
        model.weight(weight, w_scale, bits=layer.bits),
    ]
    if layer.bias:
        inputs.append(model.bias(rng.integers(-500, 501, layer.shape[0]), bias_scale))
    gemm = rank == 2
    result = model.node("Gemm" if gemm else "Conv", *inputs, **({"transB": 1} if gemm else layer.attributes))
    if layer.relu:
        result = model.node("Relu", result)
    # One row runs another kernel than many.
    one_row = [("one-row", {"x": np.full((1, layer.shape[1]), high, np.uint8)})] if gemm else []
    if layer.wide_output:
        return wide_output(layer.name, model, result, {"x": (64, layer.shape[1])}, rng)
    if layer.float_output:
        return crafted(layer.name, model.build({result: np.float32}), rng, more=one_row)
    output = model.quantise(
        result, float(y_scale), layer.y_zero_point, clip=None if layer.clip is None else (0, layer.clip)
    )
    return crafted(layer.name, model.build({output: np.uint8}), rng, more=one_row)


def _weights(layer: _Layer, rng: np.random.Generator) -> Array:
    if layer.bits < 8:
        low, high = -(2 ** (layer.bits - 1)), 2 ** (layer.bits - 1) - 1
        return rng.integers(low, high + 1, layer.shape)
    if layer.weights == "pair-safe" and layer.activation_bits == 8:
        return rng.integers(-64, 65, layer.shape)
    codes = rng.integers(-127, 128, layer.shape)
    if layer.weights == "pair-safe":
        return codes
    # Kernels multiply channels last, and add the products (0, 1), (2, 3) ... of a row in 16 bits: positions
    # of one pair stand together.
    rows = np.moveaxis(codes, 1, -1).reshape(layer.shape[0], -1)
    if layer.weights == "full":
        rows[:, :2] = 127
    else:
        _repair(rows)
    return np.moveaxis(rows.reshape(layer.shape[0], *layer.shape[2:], layer.shape[1]), -1, 1)


def _repair(rows: Array) -> None:
    """Bring each pair to sums of at most 255 * 128, and leave the pairs that lie between two of them as large
    as they are.
    """
    for start in range(0, rows.shape[1] - 1, 2):
        first, second = rows[:, start], rows[:, start + 1]
        excess = np.abs(first + second) - _PAIR_LIMIT
        beyond = (first * second > 0) & (excess > 0)
        rows[beyond, start + 1] -= np.sign(second[beyond]) * excess[beyond]


def _scales(
    layer: _Layer, weight: Array, high: int, rng: np.random.Generator
) -> tuple[np.float32, Array, np.float32]:
    """Scales that spread the sums over some three times the output's range, so that both ends saturate."""
    deviation = max(1.0, math.sqrt(int((weight * weight).sum()) / layer.shape[0]) * high / 4)
    if layer.power_of_two:
        return (
            np.float32(0.25),
            np.full(layer.shape[0], 0.125, np.float32),
            np.float32(power_of_two_below(deviation / 2048)),
        )
    w_scale = (rng.random(layer.shape[0]) * 0.02 + 0.005).astype(np.float32)
    x_scale = np.float32(rng.random() * 0.05 + 0.01)
    return x_scale, w_scale, np.float32(float(x_scale) * float(w_scale[0]) * deviation / 64)


def _cases(layers: tuple[_Layer, ...], rng: np.random.Generator) -> tuple[FormCase, ...]:
    return tuple(_layer_case(layer, rng) for layer in layers)


def _with(layers: tuple[_Layer, ...], **changes: Any) -> tuple[_Layer, ...]:
    return tuple(replace(layer, **changes) for layer in layers)


_REPAIRED = tuple(
    replace(layer, name=f"repaired-{layer.name}", weights="repaired")
    for layer in (_CONV[0], _CONV[1], _CONV[3], replace(_CONV[8], shape=(33, 66, 1, 1)))
)
_REPAIRED_GROUPED = tuple(
    replace(layer, name=f"repaired-{layer.name}", weights="repaired") for layer in (_GROUPED[0], _GROUPED[3])
)
_REPAIRED_GEMM = tuple(
    replace(layer, name=f"repaired-{layer.name}", weights="repaired") for layer in _GEMM[:4]
)


def _full(layers: tuple[_Layer, ...]) -> tuple[_Layer, ...]:
    """The graphs in which full-range weights break the pair bound."""
    return _with(
        tuple(
            layer
            for layer in layers
            if layer.activation_bits == 8 and layer.bits == 8 and np.prod(layer.shape[1:]) > 1
        ),
        weights="full",
    )


_FLOAT_GEMM = tuple(
    replace(layer, name=layer.name, float_output=True, relu=False, clip=None) for layer in _GEMM
) + tuple(
    replace(_GEMM[0], name=f"{word}-bit-weights", bits=bits, float_output=True)
    for word, bits in (("four", 4), ("two", 2))
)


def _form(name: str, about: str, layers: tuple[_Layer, ...], *, emitted: bool = True) -> Form:
    return Form(
        name=name,
        family="layers" if emitted else "unused",
        about=about,
        emitted=emitted,
        make=partial(_cases, layers),
    )


FORMS: tuple[Form, ...] = (
    _form("conv.w8", "Conv, int8 weights, no pair of products beyond int16", (*_CONV, *_REPAIRED)),
    _form("conv.w4.int4", "Conv, INT4 weights cast to int8", _with(_CONV, bits=4)),
    _form("conv.w2.int2", "Conv, INT2 weights cast to int8", _with(_CONV, bits=2)),
    _form("conv.depthwise", "Conv with one channel a group, no pair beyond int16", _DEPTHWISE),
    _form("conv.grouped", "Conv with groups, no pair beyond int16", (*_GROUPED, *_REPAIRED_GROUPED)),
    _form("gemm.w8", "Gemm, int8 weights, no pair of products beyond int16", (*_GEMM, *_REPAIRED_GEMM)),
    _form("gemm.w4.int4", "Gemm, INT4 weights cast to int8", _with(_GEMM, bits=4)),
    _form("gemm.w2.int2", "Gemm, INT2 weights cast to int8", _with(_GEMM, bits=2)),
    _form("gemm.float-output", "Gemm whose sums stay float, no pair beyond int16", _FLOAT_GEMM),
    _form(
        "gemm.int16-output",
        "Gemm whose doubled float sums become int16 codes",
        _with(_GEMM[:5], wide_output=True, clip=None),
    ),
    _form(
        "conv.w8.pair-saturation",
        "Conv, int8 weights, pairs of products beyond int16",
        _full(_CONV),
        emitted=False,
    ),
    _form(
        "conv.depthwise.pair-saturation",
        "depthwise Conv, pairs of products beyond int16",
        _full(_DEPTHWISE),
        emitted=False,
    ),
    _form(
        "conv.grouped.pair-saturation",
        "grouped Conv, pairs of products beyond int16",
        _full(_GROUPED),
        emitted=False,
    ),
    _form(
        "gemm.w8.pair-saturation",
        "Gemm, int8 weights, pairs of products beyond int16",
        _full(_GEMM),
        emitted=False,
    ),
    _form(
        "gemm.float-output.pair-saturation",
        "Gemm to floats, pairs of products beyond int16",
        _full(_FLOAT_GEMM),
        emitted=False,
    ),
)
