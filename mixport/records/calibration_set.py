"""Calibration images on disk, and what the float model thinks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become the model's input: resize, centre crop, /255, normalise.

    Attributes:
        size: (height, width) of the model's input, in pixels.
        mean: per RGB channel, in units of [0, 1].
        std: per RGB channel, in units of [0, 1].
        crop_fraction: crop side / resized shorter side; used only when an image does not have the input's
            size already.
        interpolation: bilinear, bicubic or nearest.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Calibration images on disk.

    Attributes:
        images_path: .npy of uint8 [N, H, W, 3] RGB, at the model's input size; read memory-mapped.
        count: N.
        method: images, noise, mixup ...
        recipe_key: SHA-256 of everything that was asked.
        content_sha256: SHA-256 of what came out.
        generator: name of the generator, None for real images and noise.
        blackened: how many of the images are black, because the generator's safety checker objected to them.
    """

    images_path: Path
    count: int
    method: str
    recipe_key: str
    content_sha256: str
    generator: str | None = None
    blackened: int = 0

    def open_images(self) -> NDArray[np.uint8]:
        """The images, memory-mapped. Raises StoreError where they are gone or damaged: another process may
        prune the cache.
        """
        try:
            return np.load(self.images_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = "are gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise StoreError(
                f"calibration images {self.images_path} {reason}", hint="run the same command again"
            ) from error


class ImageScores(Protocol):
    """The float model's opinion of images, as the filters of drawn images need it. Lower is better in every
    score.
    """

    def energy(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """How unfamiliar each image is.

        Args:
            images: uint8 [N, H, W, 3] at the model's input size.

        Returns:
            -logsumexp(logits), [N].

        Raises:
            BadInputError: the model gives NaN or infinity.
        """
        ...

    def statistics(
        self, images: NDArray[np.uint8], *, chosen: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], str]:
        """How badly each image fits what the model learned about whole batches, or what its patches say.

        Args:
            images: uint8 [P, H, W, 3] at the model's input size; may be memory-mapped, and is read in pieces.
            chosen: positions of the N images to score, None for all; the score of one may depend on the
                others.

        Returns:
            scores [N], and the name of the statistic.

        Raises:
            BadInputError: the model gives NaN or infinity.
            BadOptionError: the model has nothing to compute a statistic from.
        """
        ...
