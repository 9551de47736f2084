"""The images that a training sees, and the ones that it is watched on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import BadInputError

_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.02, 2000
"""Images that are only looked at: enough for half a point of accuracy."""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Images with or without labels.

    Attributes:
        images: uint8 [N, H, W, 3] at the input's size.
        labels: int64 [N] class indices, None without.
        order: positions of the images that are trained on.
        held_out: positions of the images that are only looked at.
        source: what they are, for people.
        sha256: of images and labels.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    order: NDArray[np.int64]
    held_out: NDArray[np.int64]
    source: str
    sha256: str


def split(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    *,
    source: str,
    sha256: str,
    seed: int,
    classes: int,
) -> TrainingImages:
    """A seeded share of the images is held out: 2 in 100, at most 2,000 and at least one.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], None without.
        source: what they are.
        sha256: of images and labels.
        seed: of the choice.
        classes: outputs of the model.

    Raises:
        BadInputError: fewer than two images, or a label outside the classes.
    """
    count = len(images)
    if count < 2:
        raise BadInputError(
            f"{source} holds {count} images, allowed 2 or more: one is held out to watch the training",
            hint="mixport train ... --data FILE.npz with images and labels",
        )
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        wrong = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise BadInputError(
            f"{source}: image {wrong} has label {labels[wrong]}, allowed 0 to {classes - 1}: the model has "
            f"{classes} outputs",
            hint="check the labels, or --classes and the model's head",
        )
    held = min(max(1, round(count * _HELD_OUT_SHARE)), _MOST_HELD_OUT)
    # Raw words of a counter-based generator: NumPy promises these for ever, unlike the stream of Generator.
    mixed = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable").astype(np.int64)
    return TrainingImages(
        images=images,
        labels=labels,
        order=np.sort(mixed[held:]),
        held_out=np.sort(mixed[:held]),
        source=source,
        sha256=sha256,
    )
