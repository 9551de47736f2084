"""The integer programme: known optima, budgets that nothing fits, and the order of budgets."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.quantize.budget.knapsack import bounded, solve

LOSSES = [[9.0, 3.0, 0.0], [4.0, 3.5, 0.0], [8.0, 1.0, 0.5]]
SIZES = [[2, 4, 8], [2, 4, 8], [4, 8, 16]]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (8, (0, 0, 0)),
        (9, (0, 0, 0)),
        (10, (1, 0, 0)),  # 6 for 2 bytes beats 0.5 for 2
        (12, (0, 0, 1)),  # one step of the third layer is worth 7; both small ones together 6.5
        (14, (1, 0, 1)),
        (18, (2, 0, 1)),  # ties with nothing: 0 + 4 + 1
        (32, (2, 2, 2)),
        (10**9, (2, 2, 2)),
    ],
)
def test_known_optima(budget: int, expected: tuple[int, ...]) -> None:
    assert solve(LOSSES, SIZES, budget=budget) == expected


@pytest.mark.parametrize("budget", [7, 0, -1])
def test_a_budget_below_the_smallest_has_no_solution(budget: int) -> None:
    assert solve(LOSSES, SIZES, budget=budget) is None


def test_nothing_to_choose() -> None:
    assert solve([], [], budget=0) == ()
    assert solve([], [], budget=-1) is None
    assert solve([[0.0, 0.0]], [[0, 0]], budget=0) in {(0,), (1,)}


_LAYER = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5_000_000)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(_LAYER, min_size=1, max_size=5), share=st.floats(0, 1))
def test_no_other_choice_within_the_budget_is_better(
    layers: list[list[tuple[float, int]]], share: float
) -> None:
    losses, sizes = ([[option[i] for option in layer] for layer in layers] for i in (0, 1))
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    budget = int(low + share * (high - low))
    picked = solve(losses, sizes, budget=budget)
    assert picked is not None
    assert sum(row[i] for row, i in zip(sizes, picked, strict=True)) <= budget
    every = itertools.product(*(range(len(row)) for row in losses))
    best = min(
        sum(row[i] for row, i in zip(losses, choice, strict=True))
        for choice in every
        if sum(row[i] for row, i in zip(sizes, choice, strict=True)) <= budget
    )
    assert sum(row[i] for row, i in zip(losses, picked, strict=True)) <= best + 1e-5


@settings(max_examples=30, deadline=None)
@given(layers=st.lists(_LAYER, min_size=1, max_size=12), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_bigger_budget_never_gives_a_higher_loss(
    layers: list[list[tuple[float, int]]], shares: tuple[float, float]
) -> None:
    losses, sizes = ([[option[i] for option in layer] for layer in layers] for i in (0, 1))
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    results: list[float] = []
    for share in sorted(shares):
        picked = solve(losses, sizes, budget=int(low + share * (high - low)))
        assert picked is not None
        results.append(sum(row[i] for row, i in zip(losses, picked, strict=True)))
    assert results[1] <= results[0] + 1e-5


def _least(losses: list[list[float]], sizes: list[list[int]], budget: int) -> float:
    """The optimum by dynamic programming over exact sizes."""
    best = {0: 0.0}
    for row, room in zip(losses, sizes, strict=True):
        found: dict[int, float] = {}
        for used, loss in best.items():
            for more, size in zip(row, room, strict=True):
                if used + size <= budget:
                    found[used + size] = min(found.get(used + size, math.inf), loss + more)
        best = found
    return min(best.values())


@pytest.mark.parametrize("seed", range(6))
def test_one_option_that_breaks_the_model_does_not_blind_the_solver(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = [
        sorted((10.0 ** random.uniform([-3, -5, -8], [1, -2, -5])).tolist(), reverse=True) for _ in range(12)
    ]
    losses[0][0] = math.inf
    sizes = [[0, 64 * size, 192 * size] for size in random.integers(5, 200, 12).tolist()]
    budget = sizes[0][1] + int(random.uniform(0.2, 0.9) * sum(row[2] for row in sizes))
    picked = solve(losses, sizes, budget=budget)
    assert picked is not None
    assert sum(row[i] for row, i in zip(sizes, picked, strict=True)) <= budget
    assert sum(row[i] for row, i in zip(losses, picked, strict=True)) <= 1.01 * _least(losses, sizes, budget)


def test_what_breaks_the_model_is_taken_where_nothing_else_fits() -> None:
    losses = [[math.inf, 1.0], [3.0, 1.0]]
    assert solve(losses, [[1, 5], [1, 5]], budget=6) == (1, 0)
    assert solve(losses, [[1, 5], [1, 5]], budget=5) == (0, 0)
    assert solve([[math.inf, math.inf]], [[2, 1]], budget=1) == (1,)
    assert bounded(losses) == [[12.0, 1.0], [3.0, 1.0]]
    assert bounded([[math.inf]]) == [[4.0]]


_NOISY = """
import numpy as np
from mixport.quantize.budget.knapsack import solve
rng = np.random.default_rng(63)
n = int(rng.integers(20, 60))
sizes = [[0, 2 * s, 6 * s] for s in rng.integers(100, 10000, n).tolist()]
losses = np.sort(10.0 ** rng.uniform(-6, 0.5, (n, 3)), 1)[:, ::-1].tolist()
print("before")
assert solve(losses, sizes, budget=int(rng.uniform(0.02, 0.7) * sum(s[2] for s in sizes))) is not None
print("after")
"""


def test_the_solver_prints_nothing_on_stdout() -> None:
    # A programme in which HiGHS 1.12 prints a line of its own: stdout of a build is one JSON document.
    done = subprocess.run(
        [sys.executable, "-c", _NOISY], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.split() == ["before", "after"]
