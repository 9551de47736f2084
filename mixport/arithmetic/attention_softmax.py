"""Softmax between two matrix products, divided after the second one: the definition in NumPy, and the proof
of its exponentials.

    out = (n @ V) / sum(n)    with    n = min(2^b - 1, round(2^b exp(t (c - max(c)))))    for scores c, 8-bit
    codes

Numerators n are unsigned codes of b bits relative to their row's largest score, so that flat rows keep all
their bits. The largest one saturates: it is 1 too small, which moves a mean by less than a quarter of a step
of b bits. Sums of numerators are exact in float32 whatever their order. exp is a library function whose
results differ between machines by a few units in the last place. Here it has 256 arguments at most: the step
t has so few significant bits that every product with a code, and every difference of two of them, is exact.
So it can be shown, argument by argument, that no machine's result rounds to another code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, FloatFunction, code_interval
from mixport.arithmetic.quant_params import QuantParams

EXP = FLOAT_FUNCTIONS["Exp"]

LONGEST_ROW = 1 << 16
"""Scores in a row: numerators of 8 bits then add up to less than 2^24."""

CODES = 256
STEP_BITS = 16
"""Significant bits of a step: products with integers of 8 bits are exact in float32, and so are their
differences.
"""

LEAST_STEP = 2.0**-9
"""Finer steps than half of that of the largest numerators tell nothing apart."""

_NUDGES = 64
"""Steps tried on both sides of the wanted one, 2^-16 of it apart."""


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """What turns score codes into numerators.

    Attributes:
        step: t, difference of the exponents of two neighbouring codes; float32 with STEP_BITS significant
            bits.
        bits: of the numerators.
    """

    step: float
    bits: int


def reach(bits: int) -> float:
    """How far below its row's largest a score still counts: exp(-reach) 2^bits is 1/2, which rounds to 0."""
    return math.log(2.0 * 2**bits)


def arguments(exponent: Exponent) -> NDArray[np.float32]:
    """Every argument of exp, float32 [256], for scores 0 to 255 codes below the largest: exact products."""
    return -np.arange(CODES, dtype=np.float32) * np.float32(exponent.step)


def is_proved(exponent: Exponent, *, exp: FloatFunction = EXP) -> bool:
    """True where every runtime gives the same numerators, whatever its exp gives within the bounds of
    `exp`.
    """
    exact = arguments(exponent).astype(np.float64)
    values = exp.evaluate(exact)
    ends = code_interval(values, exp.error(exact, values), scale=2.0**-exponent.bits)
    low, high = (np.rint(np.minimum(end, CODES - 1)) for end in ends)
    return np.array_equal(low, high)


def choose_exponent(step: float, *, bits: int, exp: FloatFunction = EXP) -> Exponent | None:
    """The exponent nearest to `step` whose numerators are the same on every runtime; None where there is
    none.

    Args:
        step: wanted difference between neighbouring codes, positive; values below LEAST_STEP are not kept.
        bits: of the numerators, 2 to 8.
        exp: how far runtimes may be off.
    """
    mantissa, power = math.frexp(max(step, LEAST_STEP))
    whole = round(math.ldexp(mantissa, STEP_BITS))
    for nudge in sorted(range(-_NUDGES, _NUDGES + 1), key=abs):
        # At a power of two the next step below is half as far away: a nudge is still exact, since it has one
        # bit more to spare.
        wanted = math.ldexp(min(max(whole + nudge, 1 << (STEP_BITS - 1)), 1 << STEP_BITS), power - STEP_BITS)
        exponent = Exponent(step=wanted, bits=bits)
        if is_proved(exponent, exp=exp):
            return exponent
    return None


def numerator_params(bits: int) -> QuantParams:
    """Codes of numerators: a power of two, so that sums of them are exact."""
    return QuantParams(scale=2.0**-bits, zero_point=0, qmin=0, qmax=2**bits - 1, storage="uint8")


def numerators(codes: NDArray[Any], exponent: Exponent) -> NDArray[np.uint8]:
    """Numerators of score codes, uint8 of the codes' shape; rows are the last axis."""
    below = codes.astype(np.int64) - codes.max(-1, keepdims=True).astype(np.int64)
    exact = np.exp(below.astype(np.float64) * exponent.step).astype(np.float32)
    return np.minimum(np.rint(exact / np.float32(2.0**-exponent.bits)), 2**exponent.bits - 1).astype(np.uint8)


def weighted(
    numerators: NDArray[np.uint8], v: NDArray[Any], *, v_scale: float, bits: int
) -> NDArray[np.float32]:
    """(n @ V) / sum(n) in float32: one multiplication of the integer sums, then one division.

    Args:
        numerators: uint8 [..., L, S].
        v: centred codes, integers [..., S, D].
        v_scale: float32 scale of these codes.
        bits: of the numerators.
    """
    unit = np.float32(2.0**-bits)
    sums = (numerators.astype(np.int64) @ v.astype(np.int64)).astype(np.float32) * (
        unit * np.float32(v_scale)
    )
    return sums / (numerators.sum(-1, keepdims=True, dtype=np.int64).astype(np.float32) * unit)
