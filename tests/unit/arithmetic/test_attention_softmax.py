"""Softmax divided behind its product: close to the real function, and the same codes for every exp that keeps
its bound.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from mixport.arithmetic.attention_softmax import (
    EXP,
    LEAST_STEP,
    LONGEST_ROW,
    Exponent,
    arguments,
    choose_exponent,
    is_proved,
    numerators,
    reach,
    weighted,
)
from mixport.arithmetic.float_functions import FloatFunction
from mixport.arithmetic.torch_ops import OPS

STEPS = [1e-7, 2.0**-9, 0.0071, 0.0234, 0.0625, 0.1, 0.49999, 0.5, 1.0, 3.0, 700.0]
BITS = [2, 3, 4, 7, 8]


def chosen(step: float, bits: int = 8, exp: FloatFunction = EXP) -> Exponent:
    exponent = choose_exponent(step, bits=bits, exp=exp)
    assert exponent is not None
    return exponent


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("step", STEPS)
def test_every_exp_within_its_bound_gives_the_same_codes(step: float, bits: int) -> None:
    exponent = chosen(step, bits)
    exact = np.exp(arguments(exponent).astype(np.float64)) * 2.0**bits
    low, high = (np.minimum(np.rint(exact * (1 + error)), 255) for error in (-EXP.relative, EXP.relative))
    np.testing.assert_array_equal(low, high)
    every = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(numerators(every, exponent)[0, ::-1], np.minimum(low, 2**bits - 1))
    assert numerators(every, exponent).max() == 2**bits - 1
    # The nearest of the steps that are tried keeps the error of an exponent below 2^-10 of it.
    assert exponent.step == pytest.approx(max(step, LEAST_STEP), rel=2.0**-9)


@pytest.mark.parametrize("step", STEPS)
def test_arguments_are_exact(step: float) -> None:
    exponent = chosen(step)
    wanted = [-code * Fraction(exponent.step) for code in range(256)]
    assert [Fraction(float(value)) for value in arguments(exponent)] == wanted
    # As the file computes them: each side is exact, and so is the difference.
    rows, columns = np.tril_indices(256)
    for zero_point in (0, 131, 255):
        values = (np.arange(256, dtype=np.float32) - np.float32(zero_point)) * np.float32(exponent.step)
        np.testing.assert_array_equal(values[columns] - values[rows], arguments(exponent)[rows - columns])


def test_a_step_whose_numerators_lie_near_a_tie_is_moved() -> None:
    # exp(-6 t) 256 is 100.5 in exact arithmetic: six codes below the largest.
    step = math.log(256 / 100.5) / 6
    near = Exponent(step=math.ldexp(round(math.ldexp(step, 18)), -18), bits=8)
    rough = replace(EXP, relative=1e-4)
    assert is_proved(near) and not is_proved(near, exp=rough)
    moved = chosen(step, exp=rough)
    assert is_proved(moved, exp=rough)
    assert 0 < abs(moved.step / near.step - 1) < 2e-3
    assert choose_exponent(step, bits=8, exp=replace(EXP, relative=0.1)) is None


@pytest.mark.parametrize("bits", BITS)
def test_scores_out_of_reach_weigh_nothing(bits: int) -> None:
    exponent = chosen(0.05, bits)
    distances = np.arange(256) * exponent.step
    weights = numerators(np.arange(256, dtype=np.uint8)[None], exponent)[0, ::-1]
    assert (weights[distances > reach(bits)] == 0).all()
    assert (weights[distances < reach(bits)] > 0).all()


def test_the_sum_of_the_longest_row_is_exact() -> None:
    assert 255 * LONGEST_ROW < 2**24


@pytest.mark.parametrize("kind", ["random", "flat", "one stands out", "equal", "masked"])
@pytest.mark.parametrize("length", [1, 2, 49, 197, 1025])
def test_it_is_close_to_attention(kind: str, length: int) -> None:
    rng = np.random.default_rng(length)
    exponent = chosen(0.04)
    codes = {
        "random": rng.integers(60, 256, (12, length)),
        "flat": rng.integers(120, 130, (12, length)),
        "one stands out": np.where(np.arange(length) == length // 2, 255, 0) + np.zeros((12, 1), np.int64),
        "equal": np.zeros((12, length), np.int64),
        "masked": np.where(rng.random((12, length)) < 0.7, 0, rng.integers(160, 256, (12, length))),
    }[kind].astype(np.uint8)
    v = rng.integers(-128, 128, (length, 24))
    e = np.exp((codes.astype(np.float64) - codes.max(-1, keepdims=True)) * exponent.step)
    wanted = (e / e.sum(-1, keepdims=True)) @ (v * 0.01)
    n = numerators(codes, exponent)
    found = weighted(n, v, v_scale=0.01, bits=8)
    # Each numerator is wrong by half a code, or one where it saturates: at most so much of every value.
    bound = 1.0 * np.abs(v * 0.01 - wanted[:, None, :]).sum(1) / n.sum(-1, keepdims=True, dtype=np.int64)
    assert (np.abs(found - wanted) <= bound * 1.01 + 1e-5).all()
    assert found.dtype == np.float32
    if kind == "equal":
        np.testing.assert_allclose(
            found, np.broadcast_to(v.mean(0) * 0.01, found.shape), rtol=1e-5, atol=1e-6
        )


def test_the_torch_operator_gives_the_same_numerators() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (3, 5, 77)).astype(np.uint8)
    for step, bits in ((0.0234, 8), (0.3, 8), (0.11, 4)):
        exponent = chosen(step, bits)
        scale, zero_point = 0.37, 131
        x = (torch.as_tensor(codes.astype(np.float32)) - zero_point) * torch.tensor(scale)
        e = OPS.coded_numerators(x, "softmax", scale, zero_point, exponent.step, "uint8")
        found = torch.round(e / 2.0**-bits).clamp_max(2**bits - 1).numpy().astype(np.uint8)
        np.testing.assert_array_equal(found, numerators(codes, exponent))


def test_numerators_have_the_derivative_of_what_they_are() -> None:
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((OPS.softmax_numerators(x, 0.25) * weights).sum(), x)
    (wanted,) = torch.autograd.grad((torch.exp((x - x.amax(-1, keepdim=True)) * 0.25) * weights).sum(), x)
    torch.testing.assert_close(found, wanted)
    e = OPS.softmax_numerators(x, 0.25).detach()
    torch.testing.assert_close(e / e.sum(-1, keepdim=True), torch.softmax(x.detach() * 0.25, -1))
