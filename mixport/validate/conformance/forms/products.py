"""MatMul of two code tensors, and what becomes of a product's sums: 8-bit codes, floats, or 16-bit codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import crafted, interpreted
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array


@dataclass(frozen=True, kw_only=True)
class _Product:
    name: str
    a: tuple[int, ...] = (2, 16)
    inner: int = 64
    a_zero_point: int = 0
    b_zero_point: int = 0
    y_zero_point: int = 0
    power_of_two: bool = False
    float_output: bool = False
    wide_output: bool = False
    activation_bits: int = 8


_PRODUCTS = (
    _Product(name="plain"),
    _Product(name="odd-zero-points", a_zero_point=131, b_zero_point=117, y_zero_point=129),
    _Product(
        name="exact-ties", a_zero_point=7, b_zero_point=128, y_zero_point=5, power_of_two=True, inner=32
    ),
    _Product(name="odd-channels", inner=13, a_zero_point=1, b_zero_point=255, y_zero_point=101),
    _Product(name="one-element", inner=1, a_zero_point=3, b_zero_point=1),
    _Product(name="long-rows", inner=197, b_zero_point=127, y_zero_point=128),
    _Product(name="four-bit-activations", activation_bits=4, inner=48),
)


def _product_case(product: _Product, rng: np.random.Generator) -> FormCase:
    model = Model()
    a, b = model.input("a", np.uint8, 3), model.input("b", np.uint8, 3)
    high = 2**product.activation_bits - 1
    if product.activation_bits < 8:
        a, b = model.clip(a, (0, high)), model.clip(b, (0, high))
    a_scale, b_scale = (
        (0.25, 0.125) if product.power_of_two else (float(s) for s in rng.random(2) * 0.05 + 0.005)
    )
    y_scale = a_scale * b_scale * high * high * math.sqrt(product.inner) / 768
    y_scale = power_of_two_below(y_scale) if product.power_of_two else y_scale
    result = model.node(
        "MatMul",
        model.dequantise(a, a_scale, product.a_zero_point),
        model.dequantise(b, b_scale, product.b_zero_point),
    )
    if product.wide_output:
        return wide_output(
            product.name, model, result, {"a": (2, 16, product.inner), "b": (2, product.inner, 24)}, rng
        )
    outputs = {result: np.float32}
    if not product.float_output:
        outputs = {model.quantise(result, y_scale, product.y_zero_point): np.uint8}
    return crafted(product.name, model.build(outputs), rng, inputs=("a", "b"), shape=(1, 16, product.inner))


def _products(products: tuple[_Product, ...], rng: np.random.Generator) -> tuple[FormCase, ...]:
    return tuple(_product_case(product, rng) for product in products)


def power_of_two_below(value: float) -> float:
    """The largest power of two that is not above a positive value: with such scales, sums land on ties
    exactly.
    """
    return math.ldexp(1.0, math.frexp(value)[1] - 1)


def wide_output(
    name: str, model: Model, product: str, sides: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> FormCase:
    """int16 codes of a float product: doubled, and quantised at twice the scale, so that the runtime's
    integer kernel gives floats.
    """
    output = model.quantise(
        model.node("Mul", product, model.constant(2.0, np.float32)), 2 * 0.00217, 0, dtype=np.int16
    )
    feeds = [
        (kind, {n: _filled(side, kind, rng) for n, side in sides.items()})
        for kind in ("random", "saturation")
    ]
    return interpreted(name, model.build({output: np.int16}), feeds)


def _filled(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> Array:
    return (
        rng.choice([0, 255], shape).astype(np.uint8)
        if kind == "saturation"
        else rng.integers(0, 256, shape).astype(np.uint8)
    )


FORMS: tuple[Form, ...] = (
    Form(
        name="matmul.dynamic",
        family="layers",
        about="MatMul of two uint8 code tensors",
        emitted=True,
        make=partial(_products, _PRODUCTS),
    ),
    Form(
        name="matmul.float-output",
        family="layers",
        about="MatMul of two uint8 code tensors whose sums stay float",
        emitted=True,
        make=partial(_products, tuple(replace(product, float_output=True) for product in _PRODUCTS)),
    ),
    Form(
        name="matmul.int16-output",
        family="layers",
        about="MatMul of two uint8 code tensors whose doubled float sums become int16 codes",
        emitted=True,
        make=partial(_products, tuple(replace(product, wide_output=True) for product in _PRODUCTS)),
    ),
)
