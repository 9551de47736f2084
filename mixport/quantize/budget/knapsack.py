"""One width for each of many layers, the least loss within a size: a multiple-choice knapsack, solved as an
integer programme.
"""

# scipy ships no types for the parts of the result.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mixport.quantize.budget.quiet_stdout import quiet_stdout
from mixport.records.errors import InvariantError

_ROUNDS = 8
_BROKEN = 4.0
"""What an infinite loss counts as, in largest finite ones."""


def solve(
    losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], *, budget: int
) -> tuple[int, ...] | None:
    """Pick one option a layer so that the sum of losses is least and the sum of sizes at most `budget`.

    Args:
        losses: of each option of each layer, not negative; infinite where an option is taken only if nothing
            else fits.
        sizes: of the same options, in bytes.
        budget: in bytes.

    Returns:
        index of the option of each layer, or None where not even the smallest options fit.

    Raises:
        InvariantError: the solver failed on a programme that has a solution.
    """
    if sum(min(row) for row in sizes) > budget:
        return None
    if not losses:
        return ()
    kept = [[i for i, loss in enumerate(row) if math.isfinite(loss)] for row in losses]
    if (
        not all(kept)
        or sum(min(row[i] for i in some) for row, some in zip(sizes, kept, strict=True)) > budget
    ):
        kept = [list(range(len(row))) for row in losses]
    costs = [[row[i] for i in some] for row, some in zip(bounded(losses), kept, strict=True)]
    room = [[row[i] for i in some] for row, some in zip(sizes, kept, strict=True)]
    picked = _within(costs, room, budget=budget)
    return tuple(some[i] for some, i in zip(kept, picked, strict=True))


def bounded(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """The same losses, infinite ones replaced by a small multiple of the largest finite one.

    A number like 1e6 would make all others alike to the solver, whose tolerance is relative to the largest.
    """
    largest = max((loss for row in losses for loss in row if math.isfinite(loss)), default=0.0)
    return [[loss if math.isfinite(loss) else _BROKEN * (largest or 1.0) for loss in row] for row in losses]


def _within(
    losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], *, budget: int
) -> tuple[int, ...]:
    """The best choice of which one fits."""
    bound = budget
    for _ in range(_ROUNDS):
        picked = _optimum(losses, sizes, bound=bound)
        excess = sum(row[i] for row, i in zip(sizes, picked, strict=True)) - budget
        if excess <= 0:
            return picked
        # The solver's values are integers only within its tolerance, which a large layer turns into bytes
        bound -= excess
    raise InvariantError(
        f"integer programme of {len(losses)} layers: no choice within {budget} bytes after {_ROUNDS} rounds"
    )


def _optimum(
    losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], *, bound: int
) -> tuple[int, ...]:
    counts = [len(row) for row in losses]
    starts = np.concatenate([[0], np.cumsum(counts)])
    total = int(starts[-1])
    cost = np.array([loss for row in losses for loss in row], np.float64)
    room = np.array([size for row in sizes for size in row], np.float64)
    layer = np.repeat(np.arange(len(counts)), counts)
    one_each = csr_array((np.ones(total), (layer, np.arange(total))), shape=(len(counts), total))
    largest = float(room.max()) or 1.0
    with quiet_stdout():
        result = milp(
            cost / (float(cost.max()) or 1.0),
            integrality=np.ones(total),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(room[None] / largest, -np.inf, (bound + 0.5) / largest),
            ],
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        raise InvariantError(
            f"integer programme of {len(counts)} layers within {bound} bytes: {result.message}"
        )
    return tuple(int(np.argmax(result.x[a:b])) for a, b in pairwise(starts))
