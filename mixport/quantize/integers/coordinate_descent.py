"""Codes of least squared error of what a layer gives, not of its weights.

What a layer makes of errors in its weights depends on what it reads: inputs with a large mean turn them into
an offset, inputs that move together let the error of one weight undo that of another. With the inputs'
covariance C the squared error of an output channel is (s q - w)' C (s q - w): quadratic in the codes q.
Coordinate descent gives each code in turn its best value, all others fixed (QuantEase, arXiv 2309.01885;
GPTQ, arXiv 2210.17323, visits every code once), and then the scale its own. Inputs that no float weight reads
keep codes of 0: they were added for the sake of a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixport.arithmetic.dtypes import IntType

_RIDGE = 0.01
"""Added to the covariance's diagonal, as part of its mean: GPTQ's. Weights whose inputs never move stay next
to the float ones.
"""
_SWEEPS = 8


def least_squares_codes(
    weight: Tensor,
    covariance: Tensor,
    scales: Tensor,
    *,
    bits: int,
    least: Tensor | None = None,
    sweeps: int = _SWEEPS,
    fits_scales: bool = True,
) -> tuple[Tensor, Tensor]:
    """Codes and scales by coordinate descent from rounding to nearest; the damped error rises only where a
    scale's floor asks for it.

    Args:
        weight: float64 [G, O, n].
        covariance: float64 [G, n, n], symmetric and positive semidefinite.
        scales: float64 [G, O], positive, to start from.
        bits: of the codes.
        least: float64 [G, O], what scales may not fall below; None where they may.
        sweeps: over all codes; it ends earlier where none moves.
        fits_scales: False leaves the scales as they are.

    Returns:
        codes [G, O, n], integers as float64, and positive scales [G, O].
    """
    kind = IntType(bits=bits, signed=True, narrow=bits == 8)
    damped = _damped(covariance)
    curvature = damped.diagonal(dim1=1, dim2=2)
    read = (weight != 0).flatten(0, 1).any(0)
    columns = [
        int(column) for column in curvature.sum(0).argsort(descending=True, stable=True) if read[column]
    ]
    codes = torch.round(weight / scales[..., None]).clamp_(kind.qmin, kind.qmax)
    target = weight @ damped
    for _ in range(sweeps):
        slope = (codes * scales[..., None]) @ damped - target
        moved = False
        for column in columns:
            best = codes[..., column] - slope[..., column] / (scales * curvature[:, None, column])
            step = torch.round(best).clamp_(kind.qmin, kind.qmax) - codes[..., column]
            if bool(step.any()):
                moved = True
                codes[..., column] += step
                slope += (scales * step)[..., None] * damped[:, None, column, :]
        if not moved:
            break
        if fits_scales:
            scales = _fitted(codes, damped, target, scales, least)
    return codes, scales


def _damped(covariance: Tensor) -> Tensor:
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * diagonal.mean(1, keepdim=True)
    # Where nothing ever moves all codes are alike, and the nearest ones stay.
    return covariance + torch.diag_embed(torch.where(ridge > 0, ridge, 1.0).expand_as(diagonal))


def _fitted(codes: Tensor, damped: Tensor, target: Tensor, scales: Tensor, least: Tensor | None) -> Tensor:
    """The best scale for each channel's codes, where there is a positive one."""
    length = ((codes @ damped) * codes).sum(-1)
    best = (target * codes).sum(-1) / length
    found = torch.where((length > 0) & (best > 0), best, scales)
    return found if least is None else torch.maximum(found, least)
