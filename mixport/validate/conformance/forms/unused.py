"""Forms that the portable lowering does not write, most of them because runtimes disagree: the kit must find
those out.

The answers are the correctly rounded ones (computed in float64), or what the unfused graph means where a
kernel is defined by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixport.arithmetic import integer
from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import F32, bell, computed, spread
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array

_ERF = np.vectorize(math.erf, otypes=[np.float64])


def _add(ratios: tuple[tuple[float, float, float], ...], rng: np.random.Generator) -> tuple[FormCase, ...]:
    """QLinearAdd whose sums need rounding; the answer is the unfused graph's."""
    cases: list[FormCase] = []
    left, right = (
        np.ascontiguousarray(x)
        for x in np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    )
    for number, (a_scale, b_scale, y_scale) in enumerate(ratios):
        for zero_points in ((0, 0, 0), (117, 131, 129), (3, 128, 64)):
            model = Model()
            inputs = [
                model.dequantise(model.input(n, np.uint8, 2), s, z)
                for n, s, z in zip("ab", (a_scale, b_scale), zero_points, strict=False)
            ]
            output = model.quantise(model.node("Add", *inputs), y_scale, zero_points[2])
            answer = partial(_unfused_sum, scales=(a_scale, b_scale, y_scale), zero_points=zero_points)
            name = f"scales-{number}-zero-points-{'-'.join(map(str, zero_points))}"
            cases.append(
                computed(
                    name, model.build({output: np.uint8}), answer, [("all-pairs", {"a": left, "b": right})]
                )
            )
    return tuple(cases)


def _unfused_sum(
    a: Array, b: Array, *, scales: tuple[float, float, float], zero_points: tuple[int, int, int]
) -> Array:
    left, right = (
        (x.astype(np.int64) - z).astype(F32) * F32(s)
        for x, s, z in zip((a, b), scales, zero_points, strict=False)
    )
    return np.clip(np.rint((left + right) / F32(scales[2])) + zero_points[2], 0, 255).astype(np.uint8)


def _function(op: str, function: Callable[[Array], Any], rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for name, deviation in (("narrow", 1.0), ("wide", 6.0)):
        model = Model()
        result = model.node(op, model.input("x", F32, 2))
        x = (bell((24, 160), rng) * deviation).astype(F32)
        answer = partial(_rounded, function)
        cases.append(computed(name, model.build({result: F32}), answer, [("random", {"x": x})]))
    return tuple(cases)


def _rounded(function: Callable[[Array], Any], x: Array) -> Array:
    return np.asarray(function(x.astype(np.float64))).astype(F32)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _normalised(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float64(F32(1e-5)))


def _layer_normalization(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for width in (64, 192):
        model = Model()
        ones, zeros = model.constant(np.ones(width), F32), model.constant(np.zeros(width), F32)
        result = model.node(
            "LayerNormalization", model.input("x", F32, 2), ones, zeros, axis=-1, epsilon=1e-5
        )
        x = (bell((24, width), rng) * 2 + 0.3).astype(F32)
        cases.append(
            computed(
                f"width-{width}",
                model.build({result: F32}),
                partial(_rounded, _normalised),
                [("random", {"x": x})],
            )
        )
    return tuple(cases)


def _reduce(op: str, function: Callable[[Array], Any], rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for width in (197, 64):
        model = Model()
        result = model.node(
            op, model.input("x", F32, 2), model.constant(np.asarray([-1], np.int64)), keepdims=1
        )
        feeds = [("random", {"x": spread((256, width), rng, octaves=4)})]
        cases.append(
            computed(f"width-{width}", model.build({result: F32}), partial(_rounded, function), feeds)
        )
    return tuple(cases)


def _matmul(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for inner in (64, 197):
        model = Model()
        result = model.node("MatMul", model.input("a", F32, 2), model.input("b", F32, 2))
        feeds = [
            ("random", {"a": bell((32, inner), rng).astype(F32), "b": bell((inner, 24), rng).astype(F32)})
        ]
        cases.append(computed(f"inner-{inner}", model.build({result: F32}), _product, feeds))
    return tuple(cases)


def _product(a: Array, b: Array) -> Array:
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(F32)


def _on_codes(
    op: str,
    answer: Callable[..., Array],
    scales: tuple[float, float],
    attributes: Mapping[str, Any],
    rng: np.random.Generator,
) -> tuple[FormCase, ...]:
    """An operator between DequantizeLinear and QuantizeLinear of uint8, which ONNX Runtime may run on the
    codes.
    """
    cases: list[FormCase] = []
    for name, x_zero_point, y_zero_point in (("plain", 128, 0), ("odd-zero-points", 117, 3)):
        model = Model()
        result = model.node(
            op, model.dequantise(model.input("x", np.uint8, 4), scales[0], x_zero_point), **attributes
        )
        output = model.quantise(result, scales[1], y_zero_point)
        feeds = [("random", {"x": rng.integers(0, 256, (4, 8, 12, 16)).astype(np.uint8)})]
        parameters = {"x_zero_point": x_zero_point, "y_zero_point": y_zero_point, "scales": scales}
        cases.append(computed(name, model.build({output: np.uint8}), partial(answer, **parameters), feeds))
    return tuple(cases)


def _through(
    function: Callable[[Array], Array],
    x: Array,
    *,
    scales: tuple[float, float],
    x_zero_point: int,
    y_zero_point: int,
) -> Array:
    floats = _rounded(function, integer.dequantise(x, scale=scales[0], zero_point=x_zero_point))
    return integer.quantise(floats, scale=scales[1], zero_point=y_zero_point, qmin=0, qmax=255).astype(
        np.uint8
    )


def _averages(x: Array, *, scales: tuple[float, float], x_zero_point: int, y_zero_point: int) -> Array:
    """2 x 2 windows, the arithmetic of the global pool."""
    count, channels, height, width = x.shape
    windows = x.astype(np.int64).reshape(count, channels, height // 2, 2, width // 2, 2) - x_zero_point
    multiplier = integer.average_multiplier(scales[0], scales[1], 4)
    return integer.requantise(
        windows.sum(axis=(3, 5)), multiplier=multiplier, zero_point=y_zero_point, qmin=0, qmax=255
    ).astype(np.uint8)


def _sum(x: Array) -> Array:
    return x.sum(axis=-1, keepdims=True)


def _mean(x: Array) -> Array:
    return x.mean(axis=-1, keepdims=True)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _gelu(x: Array) -> Array:
    return x * 0.5 * (1 + _ERF(x / math.sqrt(2)))


def _form(name: str, about: str, make: Callable[[np.random.Generator], tuple[FormCase, ...]]) -> Form:
    return Form(name=name, family="unused", about=about, emitted=False, make=make)


_RATIOS = ((0.031, 0.047, 0.052), (0.0217, 0.0133, 0.0291), (0.05, 0.05, 0.07))
_HALVES = ((0.25, 0.25, 0.5), (0.03, 0.03, 0.06))

FORMS: tuple[Form, ...] = (
    _form("add.fractional-ratio", "Add of uint8 codes, scales in no integer ratio", partial(_add, _RATIOS)),
    _form("add.ties", "Add of uint8 codes, both ratios 1/2", partial(_add, _HALVES)),
    _form(
        "softmax.fused",
        "Softmax of uint8 codes",
        partial(_on_codes, "Softmax", partial(_through, _softmax), (0.047, 1 / 256), {"axis": -1}),
    ),
    _form(
        "average-pool.fused",
        "AveragePool of uint8 codes",
        partial(
            _on_codes, "AveragePool", _averages, (0.047, 0.031), {"kernel_shape": [2, 2], "strides": [2, 2]}
        ),
    ),
    _form("float.softmax", "Softmax", partial(_function, "Softmax", _softmax)),
    _form("float.layer-normalization", "LayerNormalization", _layer_normalization),
    _form("float.exp", "Exp", partial(_function, "Exp", np.exp)),
    _form("float.tanh", "Tanh", partial(_function, "Tanh", np.tanh)),
    _form("float.erf", "Erf", partial(_function, "Erf", _ERF)),
    _form("float.sigmoid", "Sigmoid", partial(_function, "Sigmoid", _sigmoid)),
    _form("float.gelu", "Gelu", partial(_function, "Gelu", _gelu)),
    _form("float.reciprocal", "Reciprocal", partial(_function, "Reciprocal", np.reciprocal)),
    _form("float.matmul", "MatMul of arbitrary floats", _matmul),
    _form("float.reduce-sum", "ReduceSum of arbitrary floats", partial(_reduce, "ReduceSum", _sum)),
    _form("float.reduce-mean", "ReduceMean", partial(_reduce, "ReduceMean", _mean)),
)
