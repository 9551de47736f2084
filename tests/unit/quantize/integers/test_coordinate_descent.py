"""Codes of least squared error: never worse than the nearest ones, and no single code could be better."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixport.quantize.integers.coordinate_descent import least_squares_codes

RIDGE = 0.01


def error(codes: Tensor, scales: Tensor, weight: Tensor, covariance: Tensor) -> Tensor:
    """What descends, [G, O]: the ridge belongs to it."""
    inputs = covariance.shape[-1]
    ridge = (
        RIDGE
        * covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        * torch.eye(inputs, dtype=torch.float64)
    )
    wrong = codes * scales[..., None] - weight
    return ((wrong @ (covariance + ridge)) * wrong).sum(-1)


def problem(
    seed: int, *, groups: int, outputs: int, inputs: int, mean: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, the second moment of correlated inputs with a mean, and scales."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, outputs, inputs, generator=generator, dtype=torch.float64)
    mix = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    covariance = mix @ mix.transpose(1, 2) / inputs + mean**2
    return weight, covariance, weight.abs().amax(-1) * 0.6


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([2, 3, 4]),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 4),
    inputs=st.integers(1, 12),
    mean=st.sampled_from([0.0, 3.0]),
)
def test_never_worse_than_the_nearest_codes(
    seed: int, bits: int, groups: int, outputs: int, inputs: int, mean: float
) -> None:
    weight, covariance, scales = problem(seed, groups=groups, outputs=outputs, inputs=inputs, mean=mean)
    codes, fitted = least_squares_codes(weight, covariance, scales, bits=bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert torch.equal(codes, codes.round())
    assert low <= float(codes.min())
    assert float(codes.max()) <= high
    assert bool((fitted > 0).all())
    nearest = torch.round(weight / scales[..., None]).clamp(low, high)
    before, after = error(nearest, scales, weight, covariance), error(codes, fitted, weight, covariance)
    assert bool((after <= before * (1 + 1e-9)).all())  # float64 sums of a few dozen terms


def test_no_single_code_could_be_better() -> None:
    weight, covariance, scales = problem(7, groups=2, outputs=3, inputs=6, mean=2.0)
    codes, fitted = least_squares_codes(weight, covariance, scales, bits=3, sweeps=100)
    least = error(codes, fitted, weight, covariance)
    for column, other in itertools.product(range(6), range(-4, 4)):
        tried = codes.clone()
        tried[..., column] = other
        assert bool((error(tried, fitted, weight, covariance) >= least - 1e-12).all())


def test_errors_undo_one_another_where_inputs_are_alike() -> None:
    # Two inputs that are always equal: only the sum of their weights counts, 0.8 of a step, and both nearest
    # codes are 0.
    weight, covariance = (
        torch.full((1, 1, 2), 0.4, dtype=torch.float64),
        torch.ones((1, 2, 2), dtype=torch.float64),
    )
    codes, _ = least_squares_codes(
        weight, covariance, torch.ones((1, 1), dtype=torch.float64), bits=2, sweeps=1
    )
    assert sorted(codes.flatten().tolist()) == [0.0, 1.0]


def test_what_never_moves_keeps_the_nearest_codes() -> None:
    weight, _, scales = problem(3, groups=2, outputs=2, inputs=5, mean=0.0)
    codes, _ = least_squares_codes(weight, torch.zeros((2, 5, 5), dtype=torch.float64), scales, bits=4)
    assert torch.equal(codes, torch.round(weight / scales[..., None]).clamp(-8, 7))


def test_weights_of_zero_keep_a_positive_scale() -> None:
    _, covariance, _ = problem(3, groups=1, outputs=1, inputs=4, mean=0.0)
    codes, scales = least_squares_codes(
        torch.zeros((1, 1, 4), dtype=torch.float64), covariance, torch.ones((1, 1)).double(), bits=2
    )
    assert not codes.any()
    assert float(scales) == 1.0


@pytest.mark.parametrize("floor", [0.0, 10.0])
def test_scales_stay_above_their_floor(floor: float) -> None:
    weight, covariance, scales = problem(5, groups=1, outputs=3, inputs=6, mean=0.0)
    least = torch.full_like(scales, floor)
    _, fitted = least_squares_codes(weight, covariance, scales, bits=2, least=least)
    assert bool((fitted >= least).all())


def test_inputs_that_no_float_weight_reads_keep_codes_of_0() -> None:
    weight, covariance, scales = problem(12, groups=1, outputs=3, inputs=6, mean=3.0)
    free, _ = least_squares_codes(weight.index_fill(2, torch.tensor([4]), 1e-9), covariance, scales, bits=3)
    assert free[..., 4].any()  # correlated inputs: a code there would take up what others leave
    codes, _ = least_squares_codes(weight.index_fill(2, torch.tensor([4]), 0.0), covariance, scales, bits=3)
    assert not codes[..., 4].any()
