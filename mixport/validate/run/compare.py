"""Comparison of code tensors with tolerance 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from mixport.records.validation_report import Divergence
from mixport.validate.interpreter.graph import Array


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Counts of one comparison.

    Attributes:
        names: tensors compared.
        values: numbers compared.
        mismatches: numbers that differ.
        first: first difference, in graph order within the first batch that shows one.
    """

    names: frozenset[str] = frozenset()
    values: int = 0
    mismatches: int = 0
    first: Divergence | None = None

    @property
    def tensors(self) -> int:
        """How many different tensors were compared."""
        return len(self.names)


def compare(
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    *,
    order: Sequence[str],
    executor: str,
    inputs: str,
    offset: int = 0,
) -> Comparison:
    """Compare tensors by name.

    Args:
        expected: by the interpreter.
        got: by the other executor; a tensor that it lacks counts as wholly different.
        order: names in graph order; those not in `expected` are passed over.
        executor: name of the other executor.
        inputs: which inputs were run.
        offset: position of this batch's first image, added to the first index of a divergence.
    """
    total = Comparison()
    for name in order:
        if name in expected:
            total = join(
                total, _compare_one(name, expected[name], got.get(name), executor=executor, inputs=inputs)
            )
    if total.first is not None and total.first.index and offset:
        index = (total.first.index[0] + offset, *total.first.index[1:])
        return replace(total, first=replace(total.first, index=index))
    return total


def join(*parts: Comparison) -> Comparison:
    """Add counts; the earliest part's first divergence stays first."""
    return reduce(_join_two, parts, Comparison())


def _join_two(a: Comparison, b: Comparison) -> Comparison:
    return Comparison(
        names=a.names | b.names,
        values=a.values + b.values,
        mismatches=a.mismatches + b.mismatches,
        first=a.first or b.first,
    )


def _compare_one(name: str, expected: Array, got: Array | None, *, executor: str, inputs: str) -> Comparison:
    def divergence(index: tuple[int, ...], want: float, have: float) -> Divergence:
        return Divergence(site=name, index=index, expected=want, got=have, executor=executor, inputs=inputs)

    names = frozenset({name})
    if got is None or got.shape != expected.shape:
        # No index can be named: the counts of values stand in for them.
        first = divergence((), float(expected.size), float(0 if got is None else got.size))
        return Comparison(names=names, values=expected.size, mismatches=max(1, expected.size), first=first)
    different = _different(expected, got)
    count = int(np.count_nonzero(different))
    if not count:
        return Comparison(names=names, values=expected.size)
    index = tuple(int(i) for i in np.unravel_index(int(different.argmax()), expected.shape))
    first = divergence(index, float(expected[index]), float(got[index]))
    return Comparison(names=names, values=expected.size, mismatches=count, first=first)


def _different(expected: Array, got: Array) -> NDArray[np.bool_]:
    if expected.dtype == got.dtype and expected.dtype.kind in "iu":
        return expected != got
    if expected.dtype.kind in "iu":
        # Another storage type may hold the same codes; int64 holds every one of them.
        return expected.astype(np.int64) != got.astype(np.float64)
    return ~((expected == got) | (np.isnan(expected) & np.isnan(got)))
