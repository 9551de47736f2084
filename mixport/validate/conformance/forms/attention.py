"""Softmax divided behind its product: the exponentials of codes, and the whole attention core."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic import integer
from mixport.arithmetic.attention_softmax import Exponent, choose_exponent, numerators, weighted
from mixport.records.errors import InvariantError
from mixport.validate.conformance.forms.case import Form, FormCase
from mixport.validate.conformance.forms.expected import F32, bell, computed
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.graph import Array

_STEPS = ((0.0234, 8), (0.25, 8), (0.0041, 8), (0.05, 4), (0.11, 2), (1.7, 8))
"""Steps and bits of numerators: flat and sharp rows."""
_V_SCALE, _V_ZERO_POINT = 0.031, 117
_SCORE_SCALE, _SCORE_ZERO_POINT = 0.0471, 131


def _exponent(step: float, bits: int) -> Exponent:
    exponent = choose_exponent(step, bits=bits)
    if exponent is None:
        raise InvariantError(f"no exponent near {step} for {bits} bits")
    return exponent


def _numerators(model: Model, codes: str, exponent: Exponent) -> str:
    """Codes of the numerators of score codes, as lower.attention_softmax writes them."""
    largest = model.node("ReduceMax", codes, model.constant(np.asarray([-1], np.int64)), keepdims=1)
    difference = model.node(
        "Sub",
        model.dequantise(codes, exponent.step, _SCORE_ZERO_POINT),
        model.dequantise(largest, exponent.step, _SCORE_ZERO_POINT),
    )
    clip = None if exponent.bits == 8 else (0, 2**exponent.bits - 1)
    return model.quantise(model.node("Exp", difference), 2.0**-exponent.bits, 0, clip=clip)


def _exponentials(rng: np.random.Generator) -> tuple[FormCase, ...]:
    """Every pair of a code and the largest of its row."""
    cases: list[FormCase] = []
    codes = np.arange(256)
    pairs = np.minimum(codes[None, :], codes[:, None]).astype(np.uint8)
    for step, bits in _STEPS:
        exponent = _exponent(step, bits)
        model = Model()
        output = _numerators(model, model.input("x", np.uint8, 2), exponent)
        feeds = [
            ("all-pairs", {"x": pairs}),
            ("random", {"x": rng.integers(0, 256, (24, 197)).astype(np.uint8)}),
        ]
        cases.append(
            computed(
                f"step-{step}-bits-{bits}",
                model.build({output: np.uint8}),
                partial(numerators, exponent=exponent),
                feeds,
            )
        )
    return tuple(cases)


def _attention(rng: np.random.Generator) -> tuple[FormCase, ...]:
    cases: list[FormCase] = []
    for length, width, step, bits in (
        (197, 64, 0.0234, 8),
        (49, 32, 0.05, 8),
        (64, 24, 0.11, 4),
        (5, 13, 0.25, 8),
        (1, 8, 0.02, 8),
    ):
        exponent = _exponent(step, bits)
        model = Model()
        x, v = model.input("x", F32, 3), model.input("v", np.uint8, 3)
        scores = model.quantise(x, _SCORE_SCALE, _SCORE_ZERO_POINT)
        unit = model.dequantise(_numerators(model, scores, exponent), 2.0**-bits, 0)
        product = model.node("MatMul", unit, model.dequantise(v, _V_SCALE, _V_ZERO_POINT))
        total = model.node("ReduceSum", unit, model.constant(np.asarray([-1], np.int64)), keepdims=1)
        output = model.quantise(model.node("Div", product, total), _V_SCALE, _V_ZERO_POINT)
        rows = (2, 12, length)
        plain = (bell(rows, rng) * 2).astype(F32)
        hidden = np.where(rng.random(rows) < 0.5, F32(-np.inf), plain)
        hidden[:, 0] = -np.inf
        values = rng.integers(0, 256, (2, length, width)).astype(np.uint8)
        ends = rng.choice([0, 255], values.shape).astype(np.uint8)
        feeds = [
            ("random", {"x": plain, "v": values}),
            ("masked", {"x": hidden, "v": values}),
            # Equal scores are means: with two of them every odd sum is a tie.
            (
                "near-tie",
                {
                    "x": np.where(np.arange(length) % max(1, length // 2), F32(-60), F32(2))
                    + np.zeros(rows, F32),
                    "v": values,
                },
            ),
            ("equal", {"x": np.zeros(rows, F32), "v": values}),
            ("saturation", {"x": (plain * F32(100)), "v": ends}),
        ]
        name = f"{length}x{width}-bits-{bits}"
        cases.append(
            computed(name, model.build({output: np.uint8}), partial(_attended, exponent=exponent), feeds)
        )
    return tuple(cases)


def _attended(x: Array, v: Array, *, exponent: Exponent) -> NDArray[np.uint8]:
    scores = integer.quantise(x, scale=_SCORE_SCALE, zero_point=_SCORE_ZERO_POINT, qmin=0, qmax=255)
    centred = v.astype(np.int64) - _V_ZERO_POINT
    mean = weighted(numerators(scores, exponent), centred, v_scale=_V_SCALE, bits=exponent.bits)
    return integer.quantise(mean, scale=_V_SCALE, zero_point=_V_ZERO_POINT, qmin=0, qmax=255).astype(np.uint8)


FORMS: tuple[Form, ...] = (
    Form(
        name="softmax.numerators",
        family="composites",
        about="Exp of 8-bit scores below the largest of their row, quantised",
        emitted=True,
        make=_exponentials,
    ),
    Form(
        name="softmax.divided-later",
        family="composites",
        about="attention: softmax of 8-bit scores, divided behind its product",
        emitted=True,
        make=_attention,
    ),
)
