"""Casts: codes to floats, which is exact, and doubles to floats, which rounds half to even."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx

from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import F32, F64, computed, spread
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array


def _cast(source: str, to: type[np.generic], rng: np.random.Generator) -> tuple[FormCase, ...]:
    model = Model()
    to_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
    result = model.node("Cast", model.input("x", source, 2), to=to_type)
    info = np.iinfo(source)
    codes = np.arange(info.min, info.max + 1).astype(source)[None, :]
    feeds = [("all-codes", {"x": codes}), ("one-element", {"x": codes[:, -1:]})]
    return (computed("all-codes", model.build({result: to}), partial(_as_type, to=to), feeds),)


def _cast_double(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Doubles to floats: half to even, ties and one ulp beside them."""
    model = Model()
    result = model.node("Cast", model.input("x", F64, 2), to=onnx.TensorProto.FLOAT)
    floats = spread((8, 256), rng)
    ties = (floats.astype(F64) + np.nextafter(floats, F32(np.inf)).astype(F64)) / 2
    feeds = [
        ("random", {"x": spread((32, 96), rng, F64)}),
        ("near-tie", {"x": np.concatenate([ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)])}),
        ("saturation", {"x": np.asarray([[1e300, -1e300, 3.4028235e38, 3.4028236e38, 0.0, 1e-50]])}),
    ]
    return (computed("plain", model.build({result: F32}), partial(_as_type, to=F32), feeds),)


def _as_type(x: Array, *, to: type[np.generic]) -> Array:
    return x.astype(to)


def _form(name: str, about: str, make: Any) -> Form:
    return Form(
        name=name,
        family="double" if "double" in name else "float",
        about=about,
        emitted=True,
        make=make,
    )


FORMS: tuple[Form, ...] = (
    _form("cast.uint8-to-float", "Cast of uint8 codes to float", partial(_cast, "uint8", F32)),
    _form("cast.int16-to-float", "Cast of int16 codes to float", partial(_cast, "int16", F32)),
    _form("cast.uint16-to-float", "Cast of uint16 codes to float", partial(_cast, "uint16", F32)),
    _form("cast.uint8-to-int32", "Cast of uint8 codes to int32", partial(_cast, "uint8", np.int32)),
    _form("cast.uint8-to-double", "Cast of uint8 codes to double", partial(_cast, "uint8", F64)),
    _form("cast.int16-to-double", "Cast of int16 codes to double", partial(_cast, "int16", F64)),
    _form("cast.uint16-to-double", "Cast of uint16 codes to double", partial(_cast, "uint16", F64)),
    _form("cast.double-to-float", "Cast of doubles to float", _cast_double),
)
