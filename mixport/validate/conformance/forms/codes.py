"""Floats to codes and back, codes to other codes, and codes that only move."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import bell, interpreted
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array

_F32 = np.float32


def all_codes(dtype: str) -> Array:
    """Every code of a type once, [1, count]."""
    info = np.iinfo(dtype)
    return np.arange(info.min, info.max + 1).astype(dtype)[None, :]


def near_ties(scale: float, zero_point: int, dtype: str, *, most: int = 4096) -> Array:
    """Floats on and one ulp beside the boundaries between codes, [1, count]."""
    info = np.iinfo(dtype)
    codes = np.unique(np.linspace(info.min - 2, info.max + 2, most).astype(np.int64))
    ties = ((codes - zero_point).astype(_F32) + _F32(0.5)) * _F32(scale)
    return np.concatenate([ties, np.nextafter(ties, _F32(np.inf)), np.nextafter(ties, _F32(-np.inf))])[
        None, :
    ]


def _quantise(dtype: str, rng: np.random.Generator) -> tuple[FormCase, ...]:
    info = np.iinfo(dtype)
    middle = (int(info.min) + int(info.max) + 1) // 2
    cases: list[FormCase] = []
    for name, scale, zero_point in (
        ("power-of-two", 2.0**-6, middle),
        ("odd-zero-point", 0.0371, middle + 3),
        ("zero-point-at-the-end", 0.00913, int(info.min)),
        ("odd-scale", 1.0 / 3.0, middle - 17),
    ):
        model = Model()
        output = model.quantise(model.input("x", np.float32, 2), scale, zero_point, dtype=dtype)
        reach = scale * (int(info.max) - int(info.min))
        edges = np.asarray([[0.0, -0.0, 1e-45, -1e-38, 3.4e38, -3.4e38, np.inf, -np.inf]], _F32)
        feeds: list[tuple[str, Mapping[str, Array]]] = [
            ("random", {"x": (bell((16, 512), rng) * reach).astype(_F32)}),
            ("near-tie", {"x": near_ties(scale, zero_point, dtype)}),
            ("saturation", {"x": edges}),
            ("one-element", {"x": np.full((1, 1), scale * 0.5, _F32)}),
        ]
        cases.append(interpreted(name, model.build({output: dtype}), feeds))
    return tuple(cases)


def _dequantise(dtype: str, rng: np.random.Generator) -> tuple[FormCase, ...]:
    info = np.iinfo(dtype)
    cases: list[FormCase] = []
    for name, scale, zero_point in (
        ("plain", 0.0371, 0),
        ("odd-zero-point", 1.0 / 3.0, int(info.max) // 2 + 2),
        ("small-scale", 1.7e-6, 1),
    ):
        model = Model()
        output = model.dequantise(model.input("x", dtype, 2), scale, zero_point, dtype=dtype)
        # Behind another reader, so that the graph is more than one conversion.
        total = model.node("Add", output, model.constant(0.0, _F32))
        cases.append(interpreted(name, model.build({total: _F32}), [("all-codes", {"x": all_codes(dtype)})]))
    return tuple(cases)


def _dequantise_rows(dtype: str, rng: np.random.Generator) -> tuple[FormCase, ...]:
    """A scale and a zero point a row, which the graph computes as a normalisation does: 1 / Sqrt, and a
    QuantizeLinear.
    """
    info = np.iinfo(dtype)
    cases: list[FormCase] = []
    for name, rows, columns in (
        ("plain", 32, 64),
        ("odd-channels", 7, 33),
        ("one-column", 257, 1),
        ("one-row", 1, 129),
    ):
        model = Model()
        x = model.input("x", dtype, 2)
        scale = model.node(
            "Div", model.constant(1.0, _F32), model.node("Sqrt", model.input("spread", _F32, 1))
        )
        zero_point = model.quantise(model.input("mean", _F32, 1), 3.0, 0, dtype=dtype)
        total = model.node(
            "Add", model.node("DequantizeLinear", x, scale, zero_point, axis=0), model.constant(0.0, _F32)
        )
        ends = np.linspace(float(info.min) * 3, float(info.max) * 3, rows).astype(_F32)
        feeds: list[tuple[str, Mapping[str, Array]]] = []
        for kind, codes in (
            ("random", rng.integers(info.min, int(info.max) + 1, (rows, columns)).astype(dtype)),
            ("saturation", np.where(rng.random((rows, columns)) < 0.5, info.min, info.max).astype(dtype)),
        ):
            spread = (np.abs(bell((rows,), rng)) + 0.01).astype(_F32) * _F32(3e6)
            feeds.append(
                (
                    kind,
                    {
                        "x": codes,
                        "spread": spread,
                        "mean": ends if kind == "saturation" else ends[::-1] / _F32(7),
                    },
                )
            )
        cases.append(interpreted(name, model.build({total: _F32}), feeds))
    return tuple(cases)


def _requantise(source: str, to: str, rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    wide, narrow = np.iinfo(source), np.iinfo(to)
    ratio = (int(wide.max) - int(wide.min)) / (int(narrow.max) - int(narrow.min))
    for name, scale, x_zero, y_zero, y_scale in (
        ("plain", 0.031, 0, 0, 0.0173 * ratio),
        ("odd-zero-points", 0.00247, int(wide.max) // 2 + 2, int(narrow.max) // 2 + 4, 0.00121 * ratio),
        ("exact-ties", 0.25, 3, 5, 0.5 * ratio if ratio > 1 else 0.5),
        ("saturating", 0.1, 1, 1, 0.01 * ratio),
    ):
        model = Model()
        floats = model.dequantise(model.input("x", source, 2), scale, x_zero, dtype=source)
        output = model.quantise(floats, y_scale, y_zero, dtype=to)
        feeds = [("all-codes", {"x": all_codes(source)}), ("one-element", {"x": np.full((1, 1), 7, source)})]
        cases.append(interpreted(name, model.build({output: to}), feeds))
    return tuple(cases)


def _requantise_chain(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Codes brought to fewer bits, twice in a row: an optimiser must not merge the two roundings."""
    cases: list[FormCase] = []
    for name, scales, zero_points, high in (
        ("to-four-bits", (0.031, 0.53, 0.61), (0, 0, 0), 15),
        ("odd-zero-points", (0.021, 0.023, 0.0251), (117, 131, 129), 255),
        ("exact-ties", (0.25, 0.5, 1.0), (3, 5, 7), 255),
        ("to-two-bits", (0.031, 1.7, 2.1), (0, 0, 0), 3),
    ):
        model = Model()
        clip = None if high == 255 else (0, high)
        first = model.quantise(
            model.dequantise(model.input("x", np.uint8, 2), scales[0], zero_points[0]),
            scales[1],
            zero_points[1],
            clip=clip,
        )
        second = model.quantise(
            model.dequantise(first, scales[1], zero_points[1]), scales[2], zero_points[2], clip=clip
        )
        cases.append(
            interpreted(name, model.build({second: np.uint8}), [("all-codes", {"x": all_codes("uint8")})])
        )
    return tuple(cases)


def _clip(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for low, high in ((0, 15), (0, 3), (7, 201), (0, 127)):
        model = Model()
        output = model.clip(model.input("x", np.uint8, 2), (low, high))
        feeds = [
            ("all-codes", {"x": all_codes("uint8")}),
            ("one-element", {"x": np.full((1, 1), 255, np.uint8)}),
        ]
        cases.append(interpreted(f"{low}-to-{high}", model.build({output: np.uint8}), feeds))
    return tuple(cases)


_INT64 = np.int64

#: Movement by form name: operator, constant inputs, attributes, per case.
_MOVES: Mapping[str, tuple[tuple[str, str, tuple[Any, ...], dict[str, Any]], ...]] = {
    "reshape": (
        ("plain", "Reshape", (np.asarray([0, -1, 4]),), {}),
        ("flatten", "Flatten", (), {"axis": 1}),
        ("unsqueeze", "Unsqueeze", (np.asarray([0, 3]),), {}),
    ),
    "transpose": (
        ("attention", "Transpose", (), {"perm": [0, 2, 1, 3]}),
        ("channels-last", "Transpose", (), {"perm": [0, 2, 3, 1]}),
    ),
    "slice": (
        ("plain", "Slice", (np.asarray([1, -3]), np.asarray([4, 1000]), np.asarray([1, 3])), {}),
        ("steps", "Slice", (np.asarray([0]), np.asarray([6]), np.asarray([2]), np.asarray([2])), {}),
    ),
    "pad": (
        ("zeros", "Pad", (np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), np.uint8(0)), {}),
        ("zero-point", "Pad", (np.asarray([0, 1, 1, 2, 0, 0, 0, 3]), np.uint8(117)), {}),
    ),
    "pad.borders": (
        ("reflected", "Pad", (np.asarray([0, 0, 3, 2, 0, 0, 1, 5]),), {"mode": "reflect"}),
        ("replicated", "Pad", (np.asarray([0, 1, 1, 0, 0, 0, 2, 9]),), {"mode": "edge"}),
        ("wrapped", "Pad", (np.asarray([0, 0, 2, 3, 0, 0, 1, 4]),), {"mode": "wrap"}),
    ),
    "gather": (
        ("rows", "Gather", (np.asarray([3, 0, -1]),), {"axis": 1}),
        ("first-token", "Gather", (np.asarray(0),), {"axis": 1}),
    ),
    "expand": (
        ("expand", "Expand", (np.asarray([3, 1, 1, 1, 8]),), {}),
        ("tile", "Tile", (np.asarray([1, 2, 1, 3]),), {}),
    ),
    "depth-to-space": (
        ("depth", "DepthToSpace", (), {"blocksize": 2}),
        ("columns", "DepthToSpace", (), {"blocksize": 2, "mode": "CRD"}),
        ("space", "SpaceToDepth", (), {"blocksize": 2}),
    ),
}


def _move(form: str, rng: np.random.Generator) -> tuple[FormCase, ...]:
    """On codes, and on floats, which some data movement of a file still holds; 16-bit codes are only reshaped
    and transposed.
    """
    cases: list[FormCase] = []
    wide = (np.int16,) if form in ("reshape", "transpose") else ()
    for name, op, constants, attributes in _MOVES[form]:
        for dtype in (np.uint8, np.float32, *wide):
            model = Model()
            x = model.input("x", dtype, 4)
            values = [np.asarray(c, dtype) if np.asarray(c).dtype == np.uint8 else c for c in constants]
            output = model.node(op, x, *(model.constant(value) for value in values), **attributes)
            feeds = {"x": rng.integers(0, 256, (2, 4, 6, 8)).astype(dtype)}
            label = {np.uint8: name, np.float32: f"{name}-of-floats", np.int16: f"{name}-of-int16"}[dtype]
            cases.append(interpreted(label, model.build({output: dtype}), [("random", feeds)]))
    return tuple(cases)


def _split(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for name, sizes, axis in (("uneven", (1, 3), 1), ("thirds", (2, 2, 2), 2), ("one", (8,), 3)):
        model = Model()
        x = model.input("x", np.uint8, 4)
        first = model.node(
            "Split", x, model.constant(np.asarray(sizes, _INT64)), outputs=len(sizes), axis=axis
        )
        names = [first, *(f"{first}_{index}" for index in range(1, len(sizes)))]
        feeds = {"x": rng.integers(0, 256, (2, 4, 6, 8)).astype(np.uint8)}
        cases.append(interpreted(name, model.build(dict.fromkeys(names, np.uint8)), [("random", feeds)]))
    return tuple(cases)


def _form(name: str, about: str, make: Any, family: Any = "codes") -> Form:
    return Form(name=name, family=family, about=about, emitted=True, make=make)


FORMS: tuple[Form, ...] = (
    *(
        _form(f"quantize.{t}", f"QuantizeLinear of floats to {t}", partial(_quantise, t))
        for t in ("uint8", "int16", "uint16")
    ),
    *(
        _form(f"dequantize.{t}", f"DequantizeLinear of {t} to floats", partial(_dequantise, t))
        for t in ("uint8", "int16", "uint16")
    ),
    _form(
        "dequantize.rows.int16",
        "DequantizeLinear of int16 with a computed scale and zero point a row",
        partial(_dequantise_rows, "int16"),
    ),
    _form(
        "requantise.uint8",
        "DequantizeLinear, QuantizeLinear between scales of uint8",
        partial(_requantise, "uint8", "uint8"),
    ),
    _form(
        "requantise.int16",
        "DequantizeLinear, QuantizeLinear between scales of int16",
        partial(_requantise, "int16", "int16"),
    ),
    _form("requantise.int16-to-uint8", "int16 codes to uint8 codes", partial(_requantise, "int16", "uint8")),
    _form("requantise.uint8-to-int16", "uint8 codes to int16 codes", partial(_requantise, "uint8", "int16")),
    _form("requantise.chain", "two requantisations in a row, with a Clip each", _requantise_chain),
    _form("clip.codes", "Clip on uint8 codes", _clip),
    *(_form(f"move.{name}", f"{name} on uint8 codes", partial(_move, name), "movement") for name in _MOVES),
    _form("move.split", "Split on uint8 codes", _split, "movement"),
)
