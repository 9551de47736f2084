"""How much calibration images differ, and whether they are enough to see what a model's activations reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.records.decision import BuildWarning

FEWEST = 32
"""Fewer images than this seldom reach what other images reach: ranges that codes are cut at come from
them.
"""
SMALLEST_SPREAD = 8.0
"""Grey levels. Over images of one data set a pixel varies by 40 to 80; frames of one still scene, or one flat
colour, stay below this.
"""
_MOST_COMPARED, _MOST_SPREAD = 2048, 64
_FLAT = 2.0
"""Grey levels by which the pixels of an image vary that shows nothing."""
_MOST_FLAT = 0.5
_OTHERS = "--calib images:DIR with a few hundred different images of the kind that the model is for"


@dataclass(frozen=True, kw_only=True)
class Variety:
    """How much images differ.

    Attributes:
        images: how many there are.
        distinct: how many different ones, of the first 2,048.
        spread: standard deviation of a pixel over images, mean over all pixels and channels of 64 images, in
            grey levels (0 to 255).
        flat: share of these 64 images whose own pixels hardly vary.
    """

    images: int
    distinct: int
    spread: float
    flat: float


def measure_variety(images: NDArray[np.uint8]) -> Variety:
    """Of uint8 images [N, H, W, 3], N at least 1; may be memory-mapped, and is read image by image."""
    compared = images[:_MOST_COMPARED]
    distinct = len({hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in compared})
    some = np.asarray(
        images[np.linspace(0, len(images) - 1, min(len(images), _MOST_SPREAD)).astype(np.int64)], np.float32
    )
    flat = float((some.reshape(len(some), -1, some.shape[-1]).std(1).max(-1) < _FLAT).mean())
    return Variety(images=len(images), distinct=distinct, spread=float(some.std(0).mean()), flat=flat)


def variety_warnings(found: Variety) -> Iterator[BuildWarning]:
    """What to say of them: too few, all alike, or empty ones; nothing of images that are as they should
    be.
    """
    duplicates = (
        f" ({found.images} with the equal ones)" if found.distinct < min(found.images, _MOST_COMPARED) else ""
    )
    if found.distinct < FEWEST:
        yield BuildWarning(
            about="calibration images",
            message=f"{found.distinct} different image{'s' if found.distinct > 1 else ''}{duplicates}, fewer "
            f"than {FEWEST}: "
            "other images may leave the ranges that these reach, and are cut there",
            hint=f"{_OTHERS}; --images N asks for more",
        )
    if found.images > 1 and found.spread < SMALLEST_SPREAD:
        yield BuildWarning(
            about="calibration images",
            message=f"the images are alike: over them a pixel varies by {found.spread:.1f} grey levels of "
            "255, less than "
            f"{SMALLEST_SPREAD:g}; ranges, agreement and SQNR from them say nothing of other images",
            hint=f"{_OTHERS}; --eval to measure on others",
        )
    if found.flat > _MOST_FLAT:
        yield BuildWarning(
            about="calibration images",
            message=(
                f"{found.flat:.0%} of the images have one colour all over (their pixels vary by less "
                f"than {_FLAT:g} grey levels)"
            ),
            hint=f"{_OTHERS}; mixport calib sheet KEY shows them",
        )
