from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixport.quantize.channels.basis import Array, CodedChannels, basis_of, best_metric, equal_diagonal, power

_SIZES, _SEEDS = st.integers(2, 12), st.integers(0, 2**32 - 1)


def positive(size: int, rng: np.random.Generator) -> Array:
    """A covariance with eigenvalues from 0.1 to 10."""
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return (turn * 10.0 ** rng.uniform(-1, 1, size)) @ turn.T


def tensors(size: int, count: int, rng: np.random.Generator) -> list[CodedChannels]:
    return [CodedChannels(covariance=positive(size, rng), fisher=positive(size, rng)) for _ in range(count)]


def cost(tensors: Sequence[CodedChannels], metric: Array) -> float:
    """Sum over the tensors of tr(M B^-1) tr(B S) / C: the outputs' noise for a unit of relative noise of the
    codes.
    """
    inverse = np.linalg.inv(metric)
    return sum(
        float(np.vdot(one.fisher, inverse) * np.vdot(one.covariance, metric)) for one in tensors
    ) / len(metric)


@given(_SIZES, _SEEDS)
def test_of_one_tensor_the_metric_is_the_closed_form_and_no_other_costs_less(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (one,) = tensors(size, 1, rng)
    metric = best_metric([one])
    root = power(one.covariance, 0.5)
    least = float(np.trace(power(root @ one.fisher @ root, 0.5))) ** 2 / size
    assert cost([one], metric) == pytest.approx(least, rel=1e-6)
    assert cost([one], metric) <= cost([one], np.eye(size)) * (1 + 1e-9)
    for _ in range(5):
        assert cost([one], metric) <= cost([one], positive(size, rng)) * (1 + 1e-9)


@given(_SIZES, st.integers(2, 4), _SEEDS)
def test_of_several_tensors_no_step_away_costs_less(size: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = tensors(size, count, rng)
    metric = best_metric(shared)
    best = cost(shared, metric)
    assert best <= cost(shared, np.eye(size)) * (1 + 1e-6)
    for _ in range(5):
        half = power(metric, 0.5)
        away = rng.standard_normal((size, size))
        beside = half @ (np.eye(size) + 0.02 * (away + away.T) / size) @ half
        assert best <= cost(shared, beside) * (1 + 1e-4)


@given(_SIZES, st.integers(1, 3), _SEEDS)
def test_the_basis_has_the_metric_and_channels_of_one_variance(size: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = tensors(size, count, rng)
    metric = best_metric(shared)
    basis = basis_of(metric, shared, rng)
    np.testing.assert_allclose(basis.T @ basis, metric, rtol=1e-8, atol=1e-8 * np.abs(metric).max())
    variances = [
        np.diag(basis @ one.covariance @ basis.T) / np.vdot(metric, one.covariance) for one in shared
    ]
    np.testing.assert_allclose(np.mean(variances, axis=0), 1 / size, rtol=1e-6)


@given(_SIZES, _SEEDS, st.sampled_from([0, 1, 3]))
def test_a_rotation_makes_the_diagonal_equal(size: int, seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((size, rank or size))
    matrix = factors @ factors.T
    rotation = equal_diagonal(matrix, rng)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-10)
    np.testing.assert_allclose(np.diag(rotation @ matrix @ rotation.T), np.trace(matrix) / size, rtol=1e-8)


def test_equal_already_and_zero_stay_finite() -> None:
    for matrix in (np.eye(4), np.zeros((4, 4))):
        rotation = equal_diagonal(matrix, np.random.default_rng(0))
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("dead", ["covariance", "fisher", "both"])
def test_silent_channels_and_channels_that_nobody_sees_leave_the_basis_bounded(dead: str) -> None:
    gone, alive = np.diag([1.0, 1.0, 0.0, 0.0]), np.diag([4.0, 1.0, 1.0, 1.0])
    one = CodedChannels(
        covariance=alive if dead == "fisher" else gone, fisher=alive if dead == "covariance" else gone
    )
    metric = best_metric([one])
    assert np.isfinite(metric).all() and np.linalg.cond(metric) < 1e5
    nothing = CodedChannels(covariance=np.zeros((3, 3)), fisher=np.zeros((3, 3)))
    np.testing.assert_allclose(best_metric([nothing]), np.eye(3), atol=1e-12)


def test_a_channel_that_matters_more_gets_the_finer_codes() -> None:
    one = CodedChannels(covariance=np.eye(2), fisher=np.diag([100.0, 1.0]))
    # a hundred times the cost, and so ten times the power among the codes: the geometric mean
    np.testing.assert_allclose(np.diag(best_metric([one])), [20 / 11, 2 / 11], rtol=1e-3)
