"""Maxima, and sums of integers that their float type holds exactly, so that the order inside a sum does not
matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import F32, F64, Answer, computed, spread
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array


def _reduce(
    op: str,
    function: Answer,
    inputs: Callable[[tuple[int, ...], np.random.Generator], Array],
    rng: np.random.Generator,
) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    shapes = ((256, 64), (65, 197), (8, 25, 49), (64, 256), (5, 1))
    for shape in shapes:
        x = inputs(shape, rng)
        model = Model()
        name = model.input("x", x.dtype, len(shape))
        dtype = x.dtype
        if dtype.kind in "iu":
            name, dtype = model.node("Cast", name, to=onnx.TensorProto.FLOAT), np.dtype(F32)
        result = model.node(op, name, model.constant(np.asarray([-1], np.int64)), keepdims=1)
        feeds: list[tuple[str, Mapping[str, Array]]] = [("random", {"x": x})]
        if x.dtype.kind in "iu":
            feeds.append(("saturation", {"x": np.full(shape, np.iinfo(x.dtype).max, x.dtype)}))
        cases.append(computed("x".join(map(str, shape)), model.build({result: dtype}), function, feeds))
    return tuple(cases)


def _uint16_rows(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.integers(0, 65536, shape).astype(np.uint16)


def _integer_sum(x: Array) -> Array:
    return x.astype(np.int64).sum(axis=-1, keepdims=True).astype(F32)


def _largest(x: Array) -> Array:
    return x.max(axis=-1, keepdims=True)


def _double_sums(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Sums of codes and of their squares in double: integers below 2^53 in any order of summation."""
    cases: list[FormCase] = []
    for dtype, width, square in (
        (np.int16, 1024, True),
        (np.int16, 1024, False),
        (np.int16, 197, True),
        (np.uint16, 768, True),
        (np.uint8, 33, True),
        (np.int16, 1, True),
    ):
        model = Model()
        wide = model.node("Cast", model.input("x", dtype, 2), to=onnx.TensorProto.DOUBLE)
        data = model.node("Mul", wide, wide) if square else wide
        result = model.node("ReduceSum", data, model.constant(np.asarray([-1], np.int64)), keepdims=1)
        info = np.iinfo(dtype)
        feeds = [("random", {"x": rng.integers(info.min, info.max + 1, (96, width)).astype(dtype)})]
        feeds += [("saturation", {"x": np.full((2, width), end, dtype)}) for end in (info.min, info.max)]
        name = f"{np.dtype(dtype).name}-{width}-{'squares' if square else 'codes'}"
        cases.append(
            computed(name, model.build({result: F64}), partial(_power_sum, power=2 if square else 1), feeds)
        )
    return tuple(cases)


def _power_sum(x: Array, *, power: int) -> Array:
    return (x.astype(np.int64) ** power).sum(axis=-1, keepdims=True).astype(F64)


def _integer_matmul(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Float MatMul of integer values whose sums stay below 2^24."""
    cases: list[FormCase] = []
    for inner in (64, 13, 1):
        model = Model()
        result = model.node("MatMul", model.input("a", F32, 2), model.input("b", F32, 2))
        feeds = [
            (
                "random",
                {
                    "a": rng.integers(-255, 256, (32, inner)).astype(F32),
                    "b": rng.integers(-127, 128, (inner, 24)).astype(F32),
                },
            )
        ]
        cases.append(computed(f"inner-{inner}", model.build({result: F32}), _integer_product, feeds))
    return tuple(cases)


def _integer_product(a: Array, b: Array) -> Array:
    return (a.astype(np.int64) @ b.astype(np.int64)).astype(F32)


def _form(name: str, about: str, make: Any) -> Form:
    return Form(
        name=name,
        family="double" if "double" in name else "float",
        about=about,
        emitted=True,
        make=make,
    )


def _largest_code(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Of 8-bit codes, without a way through floats."""
    cases: list[FormCase] = []
    for shape in ((65, 197), (3, 8, 49), (5, 1), (4, 1031)):
        model = Model()
        result = model.node(
            "ReduceMax",
            model.input("x", np.uint8, len(shape)),
            model.constant(np.asarray([-1], np.int64)),
            keepdims=1,
        )
        feeds = [
            ("random", {"x": rng.integers(0, 256, shape).astype(np.uint8)}),
            ("saturation", {"x": np.zeros(shape, np.uint8)}),
        ]
        cases.append(computed("x".join(map(str, shape)), model.build({result: np.uint8}), _largest, feeds))
    return tuple(cases)


FORMS: tuple[Form, ...] = (
    Form(
        name="reduce-max.codes",
        family="codes",
        about="ReduceMax of uint8 codes",
        emitted=True,
        make=_largest_code,
    ),
    _form(
        "float.reduce-max",
        "float ReduceMax over the last axis",
        partial(_reduce, "ReduceMax", _largest, spread),
    ),
    _form(
        "float.reduce-sum.integers",
        "float ReduceSum of uint16 codes, sums below 2^24",
        partial(_reduce, "ReduceSum", _integer_sum, _uint16_rows),
    ),
    _form("float.matmul.integers", "float MatMul of integers, sums below 2^24", _integer_matmul),
    _form(
        "double.reduce-sum.integers",
        "double ReduceSum of codes or their squares, sums below 2^53",
        _double_sums,
    ),
)
