"""Float functions between codes, and how far each runtime is off: the bounds that proofs of such functions
rest on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, MARGIN, FloatFunction, proved_codes
from mixport.arithmetic.multiplication import moved_scales
from mixport.arithmetic.quant_params import QuantParams
from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.codes import all_codes
from mixport.validate.conformance.forms.expected import computed, crafted
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array

_F32 = np.float32
_HALF_ULP = 2.0**-24

_SOURCES = (("plain", 0.0371, 117), ("wide", 0.25, 128), ("narrow", 0.00213, 97), ("unsigned", 0.0237, 0))
"""Name, scale and zero point of the codes in front of a function."""


def _function(function: FloatFunction, rng: np.random.Generator) -> tuple[FormCase, ...]:
    """The form that lowering writes: quantisers for which every runtime is proved to give the same codes."""
    cases: list[FormCase] = []
    for name, scale, zero_point in _SOURCES:
        source = QuantParams(
            scale=float(_F32(scale)), zero_point=zero_point, qmin=0, qmax=255, storage="uint8"
        )
        target = _proved(function, source)
        model = Model()
        attributes: dict[str, Any] = dict(function.attributes)
        floats = model.node(
            function.op_type, model.dequantise(model.input("x", np.uint8, 2), scale, zero_point), **attributes
        )
        output = model.quantise(floats, target.scale, target.zero_point)
        more = [
            ("one-element", {"x": np.full((1, 1), 7, np.uint8)}),
            ("random", {"x": rng.integers(0, 256, (5, 7, 13)).astype(np.uint8)[0]}),
        ]
        cases.append(crafted(name, model.build({output: np.uint8}), rng, more=more))
    return tuple(cases)


def _proved(function: FloatFunction, source: QuantParams) -> QuantParams:
    """Quantiser over the function's range, its scale moved to where the proof holds."""
    x = (all_codes("uint8").reshape(-1).astype(np.float64) - source.zero_point) * source.scale
    y = function.evaluate(x)
    low, high = min(float(y.min()), 0.0), max(float(y.max()), 0.0)
    scale = float(_F32((high - low) / 255.0))
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    for moved in moved_scales(scale):
        target = QuantParams(scale=moved, zero_point=zero_point, qmin=0, qmax=255, storage="uint8")
        if proved_codes(function, source, target) is not None:
            return target
    raise ValueError(f"no scale near {scale} is proved for {function.op_type}")


def _error(function: FloatFunction, rng: np.random.Generator) -> tuple[FormCase, ...]:
    """1 where a runtime's value lies within the stated bound, divided by its margin, of the true one."""
    model = Model()
    x, reference, bound = (model.input(name, _F32, 1) for name in ("x", "reference", "bound"))
    attributes: dict[str, Any] = dict(function.attributes)
    distance = model.node("Abs", model.node("Sub", model.node(function.op_type, x, **attributes), reference))
    flags = model.node("Cast", model.node("LessOrEqual", distance, bound), to=2)
    points = _points(function, rng)
    exact = points.astype(np.float64)
    y = function.evaluate(exact)
    # The reference is rounded to float32 itself.
    room = function.error(exact, y) / MARGIN - _HALF_ULP * np.abs(y)
    feeds = {"x": points, "reference": y.astype(_F32), "bound": np.nextafter(room.astype(_F32), _F32(0))}
    return (computed("bound", model.build({flags: np.uint8}), _ones, [("random", feeds)]),)


def _points(function: FloatFunction, rng: np.random.Generator) -> Array:
    """Both signs, evenly in [-24, 24] and over 40 octaves; Exp up to 0."""
    even = np.linspace(-24.0, 24.0, 40_001)
    octaves = np.ldexp(rng.random(20_000) + 1.0, rng.integers(-30, 6, 20_000)) * rng.choice(
        [-1.0, 1.0], 20_000
    )
    points = np.concatenate([even, octaves])
    return (-np.abs(points) if function.op_type == "Exp" else points).astype(_F32)


def _ones(x: Array, reference: Array, bound: Array) -> Array:
    return np.ones(x.shape, np.uint8)


def _name(key: str) -> str:
    return key.lower().replace("/", "-")


def function_form(function: FloatFunction) -> str:
    """Name of the form of a function between codes."""
    return next(f"function.{_name(key)}" for key, one in FLOAT_FUNCTIONS.items() if one is function)


FORMS: tuple[Form, ...] = (
    *(
        Form(
            name=f"function.{_name(key)}",
            family="functions",
            about=f"DequantizeLinear, {key}, QuantizeLinear on uint8 codes, where a proof holds",
            emitted=True,
            make=partial(_function, function),
        )
        for key, function in FLOAT_FUNCTIONS.items()
    ),
    *(
        Form(
            name=f"function-error.{_name(key)}",
            family="functions",
            about=f"float {key} within its stated bound divided by {MARGIN:g}",
            emitted=True,
            make=partial(_error, function),
        )
        for key, function in FLOAT_FUNCTIONS.items()
    ),
)
