"""Calibration images as batches for the float model: all of them, or as many as a step of quantisation
needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixport.model.float_model import FloatModel
from mixport.model.run import batch_size, batches_of
from mixport.records.calibration_set import CalibrationSet
from mixport.storage.images import normalise

_FEW_IMAGES, _FEW_PIXELS = (4, 32), 1 << 15
"""Fewest and most images where each tensor is looked at alone, and how many pixels they have in between."""
_SEARCH_IMAGES, _SEARCH_PIXELS = (32, 256), 1 << 22
"""Fewest and most images that widths are chosen on, and how many pixels they have together in between."""

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CalibrationBatches:
    """The images of a calibration set, as the model reads them.

    Attributes:
        model: float model.
        calibration: uint8 [N, H, W, 3] on disk.
    """

    model: FloatModel
    calibration: CalibrationSet

    def of(self, images: Images, *, dynamic_batch: bool = True) -> Iterator[Tensor]:
        """float32 [B, 3, H, W], preprocessed; one image at a time where the graph's batch is fixed."""
        return batches_of(images, self.model, batch_size(self.model) if dynamic_batch else 1)

    def all(self, *, most: int | None = None) -> Images:
        """The first images, all of them where no number is given; memory-mapped."""
        count = self.calibration.count
        return self.calibration.open_images()[: count if most is None else min(count, most)]

    def for_search(self) -> Images:
        """256 small ones, fewer large ones."""
        return self._spread(together=_SEARCH_PIXELS, bounds=_SEARCH_IMAGES)

    def few(self) -> Images:
        """32 small ones, 4 large ones."""
        return self._spread(together=_FEW_PIXELS, bounds=_FEW_IMAGES)

    def pair(self) -> Tensor:
        """Two calibration images, float32 [2, 3, H, W]; the second one mirrored where there is only one."""
        images = np.asarray(self.calibration.open_images()[:2])
        pair = images if len(images) == 2 else np.concatenate([images, images[:, :, ::-1]])
        return torch.as_tensor(normalise(np.ascontiguousarray(pair), preprocessing=self.model.preprocessing))

    def _spread(self, *, together: int, bounds: tuple[int, int]) -> Images:
        """Evenly spaced images that have so many pixels together, within bounds."""
        images = self.all()
        pixels = self.model.input_shape[2] * self.model.input_shape[3]
        wanted = min(len(images), int(np.clip(together // pixels, *bounds)))
        return np.asarray(images[np.linspace(0, len(images) - 1, wanted).astype(np.int64)])
