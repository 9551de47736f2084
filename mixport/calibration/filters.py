"""Which drawn images are kept: those the float model finds familiar (GenQ, arXiv 2312.05272).

First the images of lowest energy, then among these the ones that fit the model's statistics best. GenQ gives
no thresholds: here each filter keeps a stated share, so that the number of images to draw is known
beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.recipe import FilterSettings
from mixport.records.calibration_set import ImageScores
from mixport.records.errors import BadOptionError, InvariantError
from mixport.storage.images import Pixels

_MOST_DRAWN = 1_000_000


@dataclass(frozen=True, kw_only=True)
class FilterRecord:
    """What the filters did.

    Attributes:
        asked: images kept.
        drawn: images there were.
        dropped_by_energy: images of high energy.
        dropped_by_statistics: images that fit the statistics badly, among those left.
        statistic: name of the statistic; empty where that filter is off.
    """

    asked: int
    drawn: int
    dropped_by_energy: int
    dropped_by_statistics: int
    statistic: str


def pool_size(filters: FilterSettings, *, images: int) -> int:
    """How many images must be drawn so that `images` remain.

    Raises:
        BadOptionError: a share outside (0, 1], or so small that a million images are not enough.
    """
    drawn = _before(
        filters.keep_energy,
        after=_before(filters.keep_statistics, after=images, option="statistics"),
        option="energy",
    )
    if drawn > _MOST_DRAWN:
        raise BadOptionError(
            f"--keep-energy {filters.keep_energy:g} and --keep-statistics "
            f"{filters.keep_statistics:g} need {drawn} drawn images "
            f"for {images}, allowed {_MOST_DRAWN}",
            hint="--keep-energy 0.5 --keep-statistics 0.5",
        )
    return drawn


def filter_images(
    pool: Pixels, *, filters: FilterSettings, images: int, scores: ImageScores
) -> tuple[tuple[int, ...], FilterRecord]:
    """Score drawn images and choose `images` of them; a filter whose share is 1 costs nothing.

    Args:
        pool: uint8 [P, H, W, 3] with P = pool_size(filters, images=images), at the input's size; may be
            memory-mapped, and is read in pieces.
        filters: shares.
        images: how many remain.
        scores: of the float model.

    Returns:
        positions in the pool, ascending, and what was dropped.

    Raises:
        BadOptionError: a share that is not allowed, or a model without the statistics that a filter needs.
        BadInputError: the model gives NaN or infinity.
    """
    energy = scores.energy(pool) if filters.keep_energy < 1.0 else None
    if filters.keep_statistics == 1.0:
        return keep(filters, images=images, energy=energy, statistics=None)
    # The statistics of an image depend on its company, which must not hold images that are dropped already.
    left = _survivors(filters, images=images, drawn=len(pool), energy=energy)
    values, name = scores.statistics(pool, chosen=left)
    statistics = np.full(len(pool), np.nan)
    statistics[list(left)] = values
    return keep(filters, images=images, energy=energy, statistics=statistics, statistic=name)


def keep(
    filters: FilterSettings,
    *,
    images: int,
    energy: NDArray[np.float64] | None,
    statistics: NDArray[np.float64] | None,
    statistic: str = "",
) -> tuple[tuple[int, ...], FilterRecord]:
    """Choose `images` of pool_size(filters, images=images) by their scores. Lower scores stay; equal ones by
    their order.

    Args:
        filters: shares.
        images: how many remain, exactly.
        energy: [P]; None exactly where the energy filter is off.
        statistics: [P], read only for images that the energy filter leaves; None exactly where the statistics
            filter is off.
        statistic: name of the statistics.

    Returns:
        positions, ascending, and what was dropped.

    Raises:
        BadOptionError: a share that is not allowed.
        InvariantError: scores that do not fit the filters, or are not finite.
    """
    drawn = pool_size(filters, images=images)
    for name, scores, share in (
        ("energy", energy, filters.keep_energy),
        ("statistics", statistics, filters.keep_statistics),
    ):
        if (scores is None) != (share == 1.0):
            raise InvariantError(
                f"{name} scores are {'missing' if scores is None else 'given'}, but the filter keeps "
                f"{share:g}"
            )
    left = _survivors(filters, images=images, drawn=drawn, energy=energy)
    kept = left if statistics is None else _lowest(statistics, left, count=images, drawn=drawn)
    return kept, FilterRecord(
        asked=images,
        drawn=drawn,
        dropped_by_energy=drawn - len(left),
        dropped_by_statistics=len(left) - len(kept),
        statistic=statistic if statistics is not None else "",
    )


def _survivors(
    filters: FilterSettings, *, images: int, drawn: int, energy: NDArray[np.float64] | None
) -> tuple[int, ...]:
    everything = tuple(range(drawn))
    if energy is None:
        return everything
    return _lowest(
        energy,
        everything,
        count=_before(filters.keep_statistics, after=images, option="statistics"),
        drawn=drawn,
    )


def _lowest(
    scores: NDArray[np.float64], positions: tuple[int, ...], *, count: int, drawn: int
) -> tuple[int, ...]:
    if scores.shape != (drawn,):
        raise InvariantError(f"{drawn} drawn images have scores of shape {list(scores.shape)}")
    values = scores[list(positions)]
    if not np.isfinite(values).all():
        raise InvariantError("scores of drawn images hold NaN or infinity")
    order = np.argsort(values, kind="stable")[:count]
    return tuple(sorted(positions[int(place)] for place in order))


def _before(share: float, *, after: int, option: str) -> int:
    """The smallest n with n * share >= after, for the share as it is written: 0.7 is 7/10."""
    if not 0.0 < share <= 1.0:
        raise BadOptionError(
            f"--keep-{option} is {share:g}, allowed above 0 and at most 1", hint=f"--keep-{option} 0.5"
        )
    return math.ceil(after / Fraction(repr(float(share))))
