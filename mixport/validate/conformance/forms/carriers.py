"""Operators between layers that compute on codes: Add, Mul, GlobalAveragePool, MaxPool, Concat, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import bell, crafted, interpreted
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two code tensors that meet. Scales: of a, of b, of the result; zero points in the same order."""

    name: str
    scales: tuple[float, float, float]
    zero_points: tuple[int, int, int]
    relu: bool = False
    bits: int = 8


_ADDS = (
    _Pair(name="equal-scales", scales=(0.05, 0.05, 0.05), zero_points=(0, 0, 0)),
    _Pair(name="odd-zero-points", scales=(0.037, 0.037, 0.037), zero_points=(117, 131, 129)),
    _Pair(name="ratios-2-and-1", scales=(0.0625, 0.03125, 0.03125), zero_points=(3, 128, 127)),
    _Pair(name="ratios-3-and-5", scales=(3 * 0.015625, 5 * 0.015625, 0.015625), zero_points=(0, 255, 1)),
    _Pair(name="relu", scales=(0.25, 0.5, 0.25), zero_points=(128, 0, 0), relu=True),
    _Pair(name="four-bit-codes", scales=(0.5, 0.25, 0.25), zero_points=(0, 0, 0), bits=4),
)

_MULS = (
    _Pair(name="plain", scales=(0.031, 0.0039, 0.023), zero_points=(0, 0, 0)),
    _Pair(name="odd-zero-points", scales=(0.021, 0.013, 0.027), zero_points=(117, 3, 131)),
    _Pair(name="exact-ties", scales=(0.25, 0.25, 4.0), zero_points=(0, 128, 5)),
    _Pair(name="exact-ties-even", scales=(0.25, 0.25, 4.0), zero_points=(1, 127, 6)),
    _Pair(name="saturating", scales=(0.1, 0.1, 0.001), zero_points=(128, 128, 128)),
    _Pair(name="four-bit-codes", scales=(0.031, 0.0039, 0.023), zero_points=(0, 0, 0), bits=4),
)


def _pair_case(op: str, pair: _Pair, rng: np.random.Generator) -> FormCase:
    model = Model()
    codes = [model.input(name, np.uint8, 2) for name in "ab"]
    if pair.bits < 8:
        codes = [model.clip(name, (0, 2**pair.bits - 1)) for name in codes]
    result = model.node(
        op, *(model.dequantise(name, pair.scales[i], pair.zero_points[i]) for i, name in enumerate(codes))
    )
    if pair.relu:
        result = model.node("Relu", result)
    output = model.quantise(result, pair.scales[2], pair.zero_points[2])
    return crafted(pair.name, model.build({output: np.uint8}), rng, inputs=("a", "b"))


def _pairs(op: str, pairs: Sequence[_Pair], rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases = [_pair_case(op, pair, rng) for pair in pairs]
    return (*cases, _shaped(op, (3, 7, 5, 3), (3, 7, 1, 1), rng), _shaped(op, (1, 1), (1, 1), rng))


def _shaped(op: str, a: tuple[int, ...], b: tuple[int, ...], rng: np.random.Generator) -> FormCase:
    """One tensor broadcast over the other, as a gate is; or one element each."""
    model = Model()
    scales = (0.5, 0.25, 0.25) if op == "Add" else (0.031, 0.0039, 0.023)
    inputs = [
        model.dequantise(model.input(name, np.uint8, len(a)), scales[i], 3) for i, name in enumerate("ab")
    ]
    output = model.quantise(model.node(op, *inputs), scales[2], 7)
    feeds = [("random", {"a": _codes(a, rng), "b": _codes(b, rng)}) for _ in range(3)]
    return interpreted("broadcast" if a != b else "one-element", model.build({output: np.uint8}), feeds)


def _codes(shape: tuple[int, ...], rng: np.random.Generator, dtype: DTypeLike = np.uint8) -> Array:
    info = np.iinfo(np.dtype(dtype).name)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def _add_then_requantise(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Codes of an exact sum, brought to the width that the next layer reads."""
    cases: list[FormCase] = []
    for name, ratios, clip in (
        ("equal-scales", (1, 1), None),
        ("ratios-2-and-3", (2, 3), None),
        ("four-bit", (1, 2), 15),
    ):
        model = Model()
        scale = 0.03125
        inputs = [
            model.dequantise(model.input(n, np.uint8, 2), scale * ratio, zero)
            for n, ratio, zero in zip("ab", ratios, (0, 7), strict=True)
        ]
        total = model.quantise(model.node("Add", *inputs), scale, 3)
        output = model.quantise(
            model.dequantise(total, scale, 3),
            0.0625 if clip is None else 0.55,
            0,
            clip=None if clip is None else (0, clip),
        )
        left, right = np.meshgrid(
            np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij"
        )
        feeds = {"a": np.ascontiguousarray(left), "b": np.ascontiguousarray(right)}
        cases.append(
            interpreted(name, model.build({total: np.uint8, output: np.uint8}), [("all-pairs", feeds)])
        )
    return tuple(cases)


def _float_add(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Sums that stay float: 16-bit streams, a constant summand, a second reader of the sum."""
    cases: list[FormCase] = []
    for name, types, zero_points, out in (
        ("int16-stream", (np.int16, np.int16), (0, 0), np.int16),
        ("uint8-into-int16-stream", (np.uint8, np.int16), (117, 3), np.int16),
        ("uint16-stream", (np.uint16, np.uint8), (32771, 131), np.uint16),
    ):
        model = Model()
        scales = [0.02 if dtype is np.uint8 else 0.000123 for dtype in types]
        inputs = [
            model.dequantise(model.input(n, dtype, 2), scales[i], zero_points[i], dtype=dtype)
            for i, (n, dtype) in enumerate(zip("ab", types, strict=True))
        ]
        output = model.quantise(model.node("Add", *inputs), 0.000151, zero_points[1], dtype=out)
        feeds = [("random", {n: _codes((64, 96), rng, dtype) for n, dtype in zip("ab", types, strict=True)})]
        for end in ("min", "max"):
            feeds.append(
                (
                    "saturation",
                    {
                        n: np.full((3, 5), getattr(np.iinfo(dtype), end), dtype)
                        for n, dtype in zip("ab", types, strict=True)
                    },
                )
            )
        cases.append(interpreted(name, model.build({output: out}), feeds))
    cases.append(_position(rng))
    cases.append(_two_readers(rng))
    return tuple(cases)


def _position(rng: np.random.Generator) -> FormCase:
    """A stream plus a float constant, as position embeddings are added."""
    model = Model()
    constant = model.constant(bell((1, 96), rng), np.float32)
    total = model.node("Add", model.dequantise(model.input("a", np.uint8, 2), 0.05, 128), constant)
    output = model.quantise(total, 0.0004, 0, dtype=np.int16)
    return interpreted(
        "constant-summand", model.build({output: np.int16}), [("random", {"a": _codes((64, 96), rng)})]
    )


def _two_readers(rng: np.random.Generator) -> FormCase:
    """A sum that is quantised twice, so that no runtime may fuse it."""
    model = Model()
    inputs = [
        model.dequantise(model.input(n, np.int16, 2), 0.00031, zero, dtype=np.int16)
        for n, zero in zip("ab", (1, -5), strict=True)
    ]
    total = model.node("Add", *inputs)
    outputs = {
        model.quantise(total, 0.0006, 0, dtype=np.int16): np.int16,
        model.quantise(total, 0.07, 117): np.uint8,
    }
    feeds = {n: _codes((64, 96), rng, np.int16) for n in "ab"}
    return interpreted("second-reader", model.build(outputs), [("random", feeds)])


def _average(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for name, size, x, y in (
        ("seven-by-seven", (7, 7), (0.031, 0), (0.012, 0)),
        ("odd-zero-points", (5, 3), (0.021, 117), (0.017, 131)),
        ("exact-ties", (8, 8), (0.5, 3), (0.25, 5)),
        ("exact-ties-two", (2, 1), (0.5, 0), (0.5, 1)),
        ("one-element", (1, 1), (0.013, 1), (0.029, 0)),
    ):
        model = Model()
        result = model.node("GlobalAveragePool", model.dequantise(model.input("x", np.uint8, 4), x[0], x[1]))
        cases.append(
            crafted(
                name, model.build({model.quantise(result, y[0], y[1]): np.uint8}), rng, shape=(1, 8, *size)
            )
        )
    return tuple(cases)


def _max_pool(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    pools: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
        ("plain", (2, 8, 12, 12), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("padded", (2, 5, 11, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("ceil", (1, 3, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("one-element", (1, 1, 1, 1), {"kernel_shape": [1, 1]}),
    )
    for name, shape, attributes in pools:
        model = Model()
        output = model.node("MaxPool", model.input("x", np.uint8, 4), **attributes)
        feeds = [
            ("random", {"x": _codes(shape, rng)}),
            *(("saturation", {"x": np.full(shape, code, np.uint8)}) for code in (0, 255)),
        ]
        cases.append(interpreted(name, model.build({output: np.uint8}), feeds))
    return tuple(cases)


def _concat(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for name, shapes, axis in (
        ("channels", ((2, 3, 5, 5), (2, 4, 5, 5)), 1),
        ("last-axis", ((3, 7), (3, 1)), -1),
        ("one-element", ((1, 1), (1, 1)), 0),
    ):
        model = Model()
        output = model.node("Concat", *(model.input(n, np.uint8, len(shapes[0])) for n in "ab"), axis=axis)
        feeds = {n: _codes(shape, rng) for n, shape in zip("ab", shapes, strict=True)}
        cases.append(interpreted(name, model.build({output: np.uint8}), [("random", feeds)]))
    return tuple(cases)


def _table(op: str, rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for name in ("random-table", "falling-table"):
        model = Model()
        entries = rng.integers(0, 256, 256) if name == "random-table" else np.arange(255, -1, -1)
        index = model.node("Cast", model.input("x", np.uint8, 2 if op == "Gather" else 1), to=6)
        output = model.node(op, model.constant(entries, np.uint8), index, axis=0)
        cases.append(crafted(name, model.build({output: np.uint8}), rng))
    return tuple(cases)


FORMS: tuple[Form, ...] = (
    Form(
        name="add.integer-ratio",
        family="carriers",
        about="Add of uint8 codes whose scales are integer multiples of the output scale",
        emitted=True,
        make=partial(_pairs, "Add", _ADDS),
    ),
    Form(
        name="add.requantise",
        family="carriers",
        about="an exact Add, then QuantizeLinear to another scale",
        emitted=True,
        make=_add_then_requantise,
    ),
    Form(
        name="add.float",
        family="carriers",
        about="Add of dequantised codes that no runtime fuses",
        emitted=True,
        make=_float_add,
    ),
    Form(
        name="mul",
        family="carriers",
        about="Mul of uint8 codes",
        emitted=True,
        make=partial(_pairs, "Mul", _MULS),
    ),
    Form(
        name="global-average-pool",
        family="carriers",
        about="GlobalAveragePool of uint8 codes",
        emitted=True,
        make=_average,
    ),
    Form(name="max-pool", family="carriers", about="MaxPool on uint8 codes", emitted=True, make=_max_pool),
    Form(name="concat", family="carriers", about="Concat on uint8 codes", emitted=True, make=_concat),
    Form(
        name="table.gather",
        family="carriers",
        about="Cast and Gather from a table of 256 codes",
        emitted=False,
        make=partial(_table, "Gather"),
    ),
    Form(
        name="table.gather-elements",
        family="carriers",
        about="Cast and GatherElements from a table of 256 codes, on flat codes",
        emitted=True,
        make=partial(_table, "GatherElements"),
    ),
)
