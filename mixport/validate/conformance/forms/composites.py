"""Softmax and LayerNormalization written out in IEEE steps and exact sums, as the portable lowering writes
them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx

from mixport.arithmetic import integer
from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import F32, F64, bell, computed
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array

_SQUARINGS = 6
_RANGE = 16.0
_FLOAT_BITS, _UINT16_BITS = 24, 16
_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


def softmax_bits(count: int) -> int:
    """Fraction bits of the exponentials of one row, so that `count` of them sum below 2^24."""
    return min(_UINT16_BITS, _FLOAT_BITS - (count - 1).bit_length())


def softmax_model(count: int, *, scale: float, zero_point: int) -> onnx.ModelProto:
    """exp(x - max) as (1 - t + t^2 / 2)^64 with t = (max - x) / 64, rounded to integers, summed exactly,
    divided once.

    Args:
        count: length of the last axis.
        scale: of the result's codes.
        zero_point: of the result's codes.
    """
    model = Model()
    scores = model.input("x", F32, 2)
    top = model.node("ReduceMax", scores, model.constant(np.asarray([-1], np.int64)), keepdims=1)
    distance = model.node("Min", model.node("Sub", top, scores), model.constant(_RANGE, F32))
    t = model.node("Mul", distance, model.constant(2.0**-_SQUARINGS, F32))
    inner = model.node("Sub", model.node("Mul", t, model.constant(0.5, F32)), model.constant(1.0, F32))
    power = model.node("Add", model.node("Mul", inner, t), model.constant(1.0, F32))
    for _ in range(_SQUARINGS):
        power = model.node("Mul", power, power)
    codes = model.quantise(power, 2.0 ** -softmax_bits(count), 0, dtype=np.uint16)
    whole = model.node("Cast", codes, to=onnx.TensorProto.FLOAT)
    total = model.node("ReduceSum", whole, model.constant(np.asarray([-1], np.int64)), keepdims=1)
    output = model.quantise(model.node("Div", whole, total), scale, zero_point)
    return model.build({output: np.uint8})


def softmax_codes(x: Array, *, scale: float, zero_point: int) -> Array:
    """The same in NumPy: every step one float32 operation, the sum in integers. x: float32 [..., N];
    uint8.
    """
    t = np.minimum(x.max(axis=-1, keepdims=True) - x, F32(_RANGE)) * F32(2.0**-_SQUARINGS)
    power = (t * F32(0.5) - F32(1)) * t + F32(1)
    for _ in range(_SQUARINGS):
        power = power * power
    whole = integer.quantise(power, scale=2.0 ** -softmax_bits(x.shape[-1]), zero_point=0, qmin=0, qmax=65535)
    quotient = whole.astype(F32) / whole.sum(axis=-1, keepdims=True).astype(F32)
    return integer.quantise(quotient, scale=scale, zero_point=zero_point, qmin=0, qmax=255).astype(np.uint8)


def layernorm_model(
    width: int,
    gamma: Array,
    beta: Array,
    *,
    whole: bool,
    dtype: str,
    in_scale: float,
    epsilon: float,
    scale: float,
    zero_point: int,
) -> onnx.ModelProto:
    """(c - m) D / sqrt(D Q - S^2 + D^2 eps / s^2) with S and Q the sums of codes and of their squares, exact.

    The mean m is S / D: of 16-bit codes to the nearest integer, which a DequantizeLinear subtracts that has a
    scale a row.

    Args:
        width: D, the last axis.
        whole: write (D c - S) / sqrt(...) instead, which rounds elsewhere.
        gamma: float32 [D].
        beta: float32 [D].
        dtype: of the input codes c.
        in_scale: s, of the input codes.
        epsilon: of the normalisation.
        scale: of the result's codes.
        zero_point: of the result's codes.
    """
    model = Model()
    codes = model.input("x", dtype, 2)
    total, squares = _layernorm_sums(model, codes, width, dtype=dtype)
    count = model.constant(width, F64)
    spread = model.node("Sub", model.node("Mul", squares, count), model.node("Mul", total, total))
    root = model.node(
        "Sqrt", model.node("Add", spread, model.constant(_shift(width, in_scale, epsilon), F64))
    )
    inverse = model.node(
        "Cast", model.node("Div", model.constant(1.0, F64) if whole else count, root), to=_FLOAT
    )
    if whole or dtype == "uint8":
        axis = model.constant(np.asarray([-1], np.int64))
        narrow = model.node("Cast", codes, to=_FLOAT)
        if whole:
            narrow = model.node("Mul", narrow, model.constant(width, F32))
        middle = model.node("Cast", total if whole else model.node("Div", total, count), to=_FLOAT)
        centred = model.node("Sub", narrow, model.node("Unsqueeze", middle, axis))
        normal = model.node("Mul", centred, model.node("Unsqueeze", inverse, axis))
    else:
        middle = model.quantise(model.node("Cast", total, to=_FLOAT), float(width), 0, dtype=dtype)
        normal = model.node("DequantizeLinear", codes, inverse, middle, axis=0)
    result = model.node(
        "Add", model.node("Mul", normal, model.constant(gamma, F32)), model.constant(beta, F32)
    )
    return model.build({model.quantise(result, scale, zero_point): np.uint8})


def _layernorm_sums(model: Model, codes: str, width: int, *, dtype: str) -> tuple[str, str]:
    """S and Q as doubles, one a row: added up in float32 where that holds them, of up to 258 squares of
    bytes.
    """
    in_float = dtype == "uint8" and width * 255**2 <= 1 << _FLOAT_BITS
    values = model.node("Cast", codes, to=_FLOAT if in_float else _DOUBLE)
    axis = model.constant(np.asarray([-1], np.int64))
    sums = [
        model.node("ReduceSum", each, axis, keepdims=0)
        for each in (values, model.node("Mul", values, values))
    ]
    total, squares = (model.node("Cast", each, to=_DOUBLE) for each in sums) if in_float else sums
    return total, squares


def layernorm_codes(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    whole: bool,
    in_scale: float,
    epsilon: float,
    scale: float,
    zero_point: int,
) -> Array:
    """The same in NumPy: sums in integers, then one IEEE operation a step. x: codes [..., D]; uint8."""
    width = x.shape[-1]
    wide = x.astype(np.int64)
    total, squares = (
        wide.sum(axis=-1, keepdims=True).astype(F64),
        (wide * wide).sum(axis=-1, keepdims=True).astype(F64),
    )
    root = np.sqrt(squares * F64(width) - total * total + F64(_shift(width, in_scale, epsilon)))
    inverse = ((F64(1) if whole else F64(width)) / root).astype(F32)
    if whole:
        centred = x.astype(F32) * F32(width) - total.astype(F32)
    elif x.dtype == np.uint8:
        centred = x.astype(F32) - (total / F64(width)).astype(F32)
    else:
        centred = x.astype(F32) - np.rint(total.astype(F32) / F32(width))
    result = centred * inverse * gamma + beta
    return integer.quantise(result, scale=scale, zero_point=zero_point, qmin=0, qmax=255).astype(np.uint8)


def _shift(width: int, in_scale: float, epsilon: float) -> float:
    return width * width * epsilon / (float(F32(in_scale)) ** 2)


def _softmax(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for count, zero_point, scale in (
        (197, 0, 1 / 256),
        (16, 0, 1 / 256),
        (49, 0, 1 / 255),
        (1, 0, 1 / 256),
        (577, 3, 0.0031),
        (65, 0, 0.5),
    ):
        rows = bell((24, count), rng).astype(F32)
        equal = np.zeros((2, count), F32)
        pairs = np.where(np.arange(count) % 2 == 0, F32(5), F32(4.306853))[None, :].astype(F32)
        far = np.where(np.arange(count) == 0, F32(60), F32(-60))[None, :].astype(F32)
        feeds = [
            ("random", {"x": rows * F32(3)}),
            ("near-tie", {"x": np.concatenate([equal, pairs])}),
            ("saturation", {"x": far}),
        ]
        model = softmax_model(count, scale=scale, zero_point=zero_point)
        cases.append(
            computed(f"row-{count}", model, partial(softmax_codes, scale=scale, zero_point=zero_point), feeds)
        )
    return tuple(cases)


def _layernorm(whole: bool, rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for width, dtype, in_scale, scale, zero_point in (
        (64, "int16", 0.00031, 0.031, 128),
        (192, "int16", 0.0007, 0.021, 117),
        (768, "int16", 0.0003, 0.019, 131),
        (1024, "int16", 0.001, 0.025, 129),
        (197, "uint8", 0.031, 0.027, 127),
        (258, "uint8", 0.031, 0.027, 127),
        (259, "uint8", 0.031, 0.027, 127),
        (33, "uint8", 0.021, 0.5, 128),
        (1, "int16", 0.01, 0.03, 3),
    ):
        gamma, beta = (1 + bell((width,), rng) * 0.3).astype(F32), (bell((width,), rng) * 0.2).astype(F32)
        parameters: dict[str, Any] = {
            "whole": whole,
            "in_scale": in_scale,
            "epsilon": 1e-6,
            "scale": scale,
            "zero_point": zero_point,
        }
        info = np.iinfo(dtype)
        middle, deviation = (int(info.max) + int(info.min)) // 2, int(info.max) // 3
        rows = np.clip(middle + bell((24, width), rng) * deviation, info.min, info.max).astype(dtype)
        ends = np.where(np.arange(width) % 2 == 0, info.min, info.max)[None, :].astype(dtype)
        feeds = [
            ("random", {"x": rows}),
            (
                "saturation",
                {
                    "x": np.concatenate(
                        [ends, np.full((1, width), info.min, dtype), np.full((1, width), info.max, dtype)]
                    )
                },
            ),
            # One code apart: the variance is as small as it can be, and epsilon counts.
            ("near-tie", {"x": (middle + (rng.random((8, width)) < 0.5)).astype(dtype)}),
        ]
        model = layernorm_model(width, gamma, beta, dtype=dtype, **parameters)
        cases.append(
            computed(
                f"{dtype}-{width}",
                model,
                partial(layernorm_codes, gamma=gamma, beta=beta, **parameters),
                feeds,
            )
        )
    return tuple(cases)


FORMS: tuple[Form, ...] = (
    Form(
        name="softmax.portable",
        family="composites",
        about="Softmax of IEEE steps and exact sums",
        emitted=True,
        make=_softmax,
    ),
    Form(
        name="layernorm.portable",
        family="composites",
        about="LayerNormalization of exact sums and IEEE steps",
        emitted=True,
        make=partial(_layernorm, False),
    ),
    Form(
        name="layernorm.whole",
        family="composites",
        about="LayerNormalization with D c - S in place of c - m",
        emitted=False,
        make=partial(_layernorm, True),
    ),
)
