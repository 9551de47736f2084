"""Float steps that IEEE 754 fixes: one operation, correctly rounded. The answers are single NumPy
operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import F32, F64, Answer, computed, spread
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array


def _binary(
    op: str, function: Answer, dtype: type[np.floating[Any]], rng: np.random.Generator
) -> tuple[FormCase, ...]:
    shapes = (
        ("plain", (32, 96), (32, 96)),
        ("last-axis", (32, 96), (32, 1)),
        ("channels", (2, 7, 33), (33,)),
        ("one-element", (1, 1), (1, 1)),
    )
    cases: list[FormCase] = []
    for name, a, b in shapes:
        model = Model()
        result = model.node(op, model.input("a", dtype, len(a)), model.input("b", dtype, len(b)))
        near = spread(a, rng, dtype, octaves=1)
        feeds = [
            ("random", {"a": spread(a, rng, dtype), "b": spread(b, rng, dtype)}),
            # Close operands cancel, so that a fused or widened step shows in the last bits.
            ("cancellation", {"a": near, "b": spread(b, rng, dtype, octaves=1)}),
        ]
        cases.append(computed(name, model.build({result: dtype}), function, feeds))
    cases.append(_constant(op, function, dtype, rng))
    return tuple(cases)


def _constant(op: str, function: Answer, dtype: type[np.floating[Any]], rng: np.random.Generator) -> FormCase:
    """The second operand is part of the file."""
    value = dtype(0.7)
    model = Model()
    result = model.node(op, model.input("a", dtype, 2), model.constant(value, dtype))
    return computed(
        "constant",
        model.build({result: dtype}),
        partial(_with_constant, function, value),
        [("random", {"a": spread((32, 96), rng, dtype)})],
    )


def _unary(
    op: str,
    function: Answer,
    dtype: type[np.floating[Any]],
    rng: np.random.Generator,
    *,
    positive: bool = False,
) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for name, shape in (("plain", (32, 96)), ("odd-channels", (7, 13)), ("one-element", (1, 1))):
        model = Model()
        result = model.node(op, model.input("x", dtype, 2))
        x = spread(shape, rng, dtype)
        cases.append(
            computed(
                name,
                model.build({result: dtype}),
                function,
                [("random", {"x": np.abs(x) if positive else x})],
            )
        )
    return tuple(cases)


def _clip(rng: np.random.Generator) -> tuple[FormCase, ...]:
    low, high = F32(-0.7), F32(2.3)
    model = Model()
    result = model.node("Clip", model.input("x", F32, 2), model.constant(low), model.constant(high))
    feeds = [("random", {"x": spread((32, 96), rng)})]
    return (computed("plain", model.build({result: F32}), partial(np.clip, a_min=low, a_max=high), feeds),)


def _multiply_add(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Two nodes, two roundings: a kernel that contracts them is found out."""
    cases: list[FormCase] = []
    for name, second, function in (("mul-add", "Add", np.add), ("mul-sub", "Sub", np.subtract)):
        model = Model()
        product = model.node("Mul", model.input("a", F32, 2), model.input("b", F32, 2))
        result = model.node(second, product, model.input("c", F32, 2))
        a, b = spread((64, 96), rng, octaves=2), spread((64, 96), rng, octaves=2)
        c = np.nextafter(a * b, F32(np.inf)) * F32(-1 if second == "Add" else 1)
        feeds = [
            ("cancellation", {"a": a, "b": b, "c": c}),
            ("random", {"a": a, "b": b, "c": spread((64, 96), rng)}),
        ]
        cases.append(computed(name, model.build({result: F32}), partial(_of_product, function), feeds))
    return tuple(cases)


def _with_constant(function: Answer, value: Any, x: Array) -> Any:
    return function(x, value)


def _of_product(function: Answer, a: Array, b: Array, c: Array) -> Any:
    return function(a * b, c)


def _subnormals(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Results below the smallest normal float, which some machines flush to zero."""
    cases: list[FormCase] = []
    for op, function in (("Mul", np.multiply), ("Div", np.divide)):
        model = Model()
        result = model.node(op, model.input("a", F32, 2), model.input("b", F32, 2))
        a = (rng.random((16, 64)) * 1e-30).astype(F32)
        b = (rng.random((16, 64)) * 1e-10 + 1e-11).astype(F32)
        feeds = [("random", {"a": a, "b": b if op == "Mul" else F32(1) / b})]
        cases.append(computed(op.lower(), model.build({result: F32}), function, feeds))
    return tuple(cases)


_BINARY: Mapping[str, tuple[str, Answer]] = {
    "add": ("Add", np.add),
    "sub": ("Sub", np.subtract),
    "mul": ("Mul", np.multiply),
    "div": ("Div", np.divide),
    "min": ("Min", np.minimum),
    "max": ("Max", np.maximum),
}


def _form(name: str, about: str, make: Any) -> Form:
    return Form(
        name=name,
        family="double" if "double" in name else "float",
        about=about,
        emitted=True,
        make=make,
    )


def _relu(x: Array) -> Array:
    return np.maximum(x, F32(0))


FORMS: tuple[Form, ...] = (
    *(
        _form(f"float.{name}", f"float {op}", partial(_binary, op, f, F32))
        for name, (op, f) in _BINARY.items()
    ),
    _form("float.sqrt", "float Sqrt", partial(_unary, "Sqrt", np.sqrt, F32, positive=True)),
    _form("float.neg", "float Neg", partial(_unary, "Neg", np.negative, F32)),
    _form("float.abs", "float Abs", partial(_unary, "Abs", np.abs, F32)),
    _form("float.relu", "float Relu", partial(_unary, "Relu", _relu, F32)),
    _form("float.clip", "float Clip", _clip),
    _form("float.mul-add", "float Mul, then Add or Sub: two roundings", _multiply_add),
    _form("float.subnormals", "float Mul and Div with results below 2^-126", _subnormals),
    *(
        _form(f"double.{name}", f"double {op}", partial(_binary, op, f, F64))
        for name, (op, f) in list(_BINARY.items())[:4]
    ),
    _form("double.sqrt", "double Sqrt", partial(_unary, "Sqrt", np.sqrt, F64, positive=True)),
)
