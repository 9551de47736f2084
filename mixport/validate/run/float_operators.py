"""Float islands against float operators evaluated elsewhere: every code and every output within a bound of
what they give.

A float island is outside the claim of equal integers, since runtimes differ in the last bits of floats. It is
not outside all checks: an optimiser may replace it by an operator that computes something else. So its result
is compared with that of the quantiser's own float operators on the same codes.

The bounds. A code may be one step away: two roundings of nearly equal values lie at most one step apart, and
an integer operator that stands for the float one rounds once more, by half a step. Where the operators
amplify float rounding (a division by something small), the distance of their own evaluations in float32 and
float64 is added, times 8, for other orders of summation. A float output may be 2^-12 of the largest output
away: the rounding of a float32 sum of 4,096 terms in the worst order, 4,096 units of 2^-24.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mixport.records.simulation import FloatEvaluation
from mixport.records.validation_report import Divergence
from mixport.validate.interpreter.graph import Array
from mixport.validate.run.compare import Comparison, join

OUTPUT_TOLERANCE = 2.0**-12
"""Of the largest output."""
_STEP, _AMPLIFIED = 1.0, 8.0


def compare_floats(
    floats: Mapping[str, FloatEvaluation],
    got: Mapping[str, Array],
    *,
    names: Sequence[str],
    executor: str,
    inputs: str,
    offset: int = 0,
) -> Comparison:
    """Compare what a runtime gives behind float islands.

    Args:
        floats: evaluations by site name, and `output`.
        got: codes by site name, and the float `output`.
        names: what is compared, where both have it.
        executor: name of the runtime.
        inputs: which inputs were run.
        offset: position of the first image.
    """
    total = Comparison()
    for name in names:
        if name in floats and name in got:
            total = join(
                total,
                _compare_one(name, floats[name], got[name], executor=executor, inputs=inputs, offset=offset),
            )
    return total


def bound_of(name: str, evaluation: FloatEvaluation) -> float:
    """Largest distance allowed: in codes, or in real units for `output`."""
    slack = _AMPLIFIED * evaluation.error
    if name != "output":
        return _STEP + slack
    finite = evaluation.values[np.isfinite(evaluation.values)]
    return OUTPUT_TOLERANCE * float(np.abs(finite).max(initial=0.0)) + slack


def _compare_one(
    name: str, wanted: FloatEvaluation, got: Array, *, executor: str, inputs: str, offset: int
) -> Comparison:
    names = frozenset({name})
    if got.shape != wanted.values.shape:
        first = Divergence(
            site=name,
            index=(),
            expected=float(wanted.values.size),
            got=float(got.size),
            executor=executor,
            inputs=f"{inputs}: shape",
        )
        return Comparison(
            names=names, values=wanted.values.size, mismatches=max(1, wanted.values.size), first=first
        )
    distance: NDArray[np.float64] = np.abs(got.astype(np.float64) - wanted.values)
    # NaN in `wanted`: float operators that overflow say nothing. NaN in `got` alone is a difference.
    different = np.isfinite(wanted.values) & ~(distance <= bound_of(name, wanted))
    count = int(np.count_nonzero(different))
    if not count:
        return Comparison(names=names, values=wanted.values.size)
    index = tuple(int(i) for i in np.unravel_index(int(different.argmax()), different.shape))
    first = Divergence(
        site=name,
        index=(index[0] + offset, *index[1:]) if index else index,
        expected=float(wanted.values[index]),
        got=float(got[index]),
        executor=executor,
        inputs=inputs,
    )
    return Comparison(names=names, values=wanted.values.size, mismatches=count, first=first)
