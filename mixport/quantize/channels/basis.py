"""The basis in which one scale for all channels costs least: closed form, from what the channels are and what
the outputs make of them.

y = A (x - mean) is quantised with one step for all its channels, which gives each of them noise of the same
power, proportional to the largest variance among them. Behind it A is undone, and the outputs feel tr(M B^-1)
of it, with M the Fisher information of x and B = A^T A. Any rotation in front of A leaves B as it is, and one
of them makes all variances equal, tr(B S) / C with S the covariance of x. So tr(M B^-1) tr(B S) is to be
small, and it is smallest at the geometric mean of S^-1 and M (Pusz and Woronowicz, 1975): B = S^-1/2 (S^1/2 M
S^1/2)^1/2 S^-1/2. Rounding the weights behind adds noise of the same form, since a weight's step grows with
its row.

Rotations are how language models are made ready for narrow codes (QuaRot, arXiv 2404.00456; SpinQuant, arXiv
2405.16406), invertible matrices too (FlatQuant, arXiv 2410.09426); those are drawn or learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LEAST_EIGENVALUE = 1e-4
"""Of the mean one: a direction that hardly varies, or that no output sees, is not blown up further."""
_ROUNDS = 20
"""Until tensors that share a basis agree on one."""


@dataclass(frozen=True, kw_only=True)
class CodedChannels:
    """One tensor that is read through narrow codes.

    Attributes:
        covariance: of its channels over all places, float64 [C, C], about the mean where the mean is taken
            off, else about 0.
        fisher: mean of g g^T over the places, g the gradient of the outputs' log-likelihood with respect to a
            place, float64 [C, C].
    """

    covariance: Array
    fisher: Array


def best_metric(tensors: Sequence[CodedChannels]) -> Array:
    """B = A^T A of the best basis for tensors that must share one, float64 [C, C], symmetric and positive.

    With several tensors the sum of their costs is smallest at the geometric mean for weighted sums of their
    covariances and of their Fisher information, whose weights depend on B: iterated from B = 1.
    """
    channels = len(tensors[0].covariance)
    metric = np.eye(channels)
    for _ in range(_ROUNDS if len(tensors) > 1 else 1):
        inverse = np.linalg.inv(metric)
        covariance = _sound(sum(float(np.vdot(one.fisher, inverse)) * one.covariance for one in tensors))
        fisher = _sound(sum(float(np.vdot(one.covariance, metric)) * one.fisher for one in tensors))
        root, back = power(covariance, 0.5), power(covariance, -0.5)
        metric = back @ power(root @ fisher @ root, 0.5) @ back
        metric *= channels / np.vdot(metric, covariance)
    return metric


def basis_of(metric: Array, tensors: Sequence[CodedChannels], rng: np.random.Generator) -> Array:
    """A with A^T A = B in which all channels have the same variance, on average over the tensors, float64 [C,
    C].
    """
    root = power(metric, 0.5)
    seen = [root @ one.covariance @ root for one in tensors]
    mean = np.mean([one / max(float(np.trace(one)), np.finfo(np.float64).tiny) for one in seen], axis=0)
    return equal_diagonal(mean, rng) @ root


def equal_diagonal(symmetric: Array, rng: np.random.Generator) -> Array:
    """A rotation R, drawn, for which all diagonal elements of R S R^T are equal, float64 [C, C].

    A random rotation, so that channels become sums of many, and then C - 1 plane rotations, each of which
    brings one diagonal element to the mean (Bendel and Mickey, 1978).
    """
    size = len(symmetric)
    rotation: Array = np.linalg.qr(rng.standard_normal((size, size)))[0]
    turned = rotation @ symmetric @ rotation.T
    mean = float(np.trace(turned)) / size
    for _ in range(size - 1):
        low, high = int(np.argmin(np.diag(turned))), int(np.argmax(np.diag(turned)))
        a, b, c = turned[low, low] - mean, turned[high, high] - mean, turned[low, high]
        if not b > 1e-12 * abs(mean):
            break
        # Tangent of the angle after which `low` is at the mean: b t^2 + 2 c t + a = 0, a <= 0 <= b, so that a
        # root exists.
        tangent = -a / (c + np.copysign(np.sqrt(max(c * c - a * b, 0.0)), c))
        cosine = 1.0 / np.sqrt(1.0 + tangent * tangent)
        plane = np.array([[cosine, cosine * tangent], [-cosine * tangent, cosine]])
        rows = [low, high]
        rotation[rows] = plane @ rotation[rows]
        turned[rows] = plane @ turned[rows]
        turned[:, rows] = turned[:, rows] @ plane.T
    return rotation


def power(symmetric: Array, exponent: float) -> Array:
    """Power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    return (vectors * np.maximum(values, np.finfo(np.float64).tiny) ** exponent) @ vectors.T


def _sound(symmetric: Array | int) -> Array:
    """Trace C, and no eigenvalue below the least."""
    matrix = np.asarray(symmetric, np.float64)
    size, trace = len(matrix), float(np.trace(matrix))
    if not trace > 0:
        return np.eye(size)
    values, vectors = np.linalg.eigh((matrix + matrix.T) * (size / (2 * trace)))
    return (vectors * np.maximum(values, _LEAST_EIGENVALUE)) @ vectors.T
