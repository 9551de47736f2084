"""The float model run on images, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixport.model.float_model import FloatModel
from mixport.records.progress import Progress, SilentProgress
from mixport.storage.images import normalise


def float_logits(
    model: FloatModel, images: NDArray[np.uint8], *, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Logits of the float model, [N, classes], for uint8 [N, H, W, 3] images."""
    progress = progress or SilentProgress()
    results: list[NDArray[np.float32]] = []
    with progress.track("float model", total=len(images)) as advance, torch.no_grad():
        for batch in batches_of(images, model, batch_size(model)):
            results.append(_logits(model, batch))
            advance(len(batch))
    return np.concatenate(results)


def images_at_once(input_shape: tuple[int, ...]) -> int:
    """Images [1, 3, H, W] that run together where nothing is learned: 131,072 pixels, but 4 to 64 images."""
    return min(max(131072 // (input_shape[2] * input_shape[3]), 4), 64)


def batch_size(model: FloatModel) -> int:
    """Images that the float model runs on together."""
    return 1 if model.one_image else images_at_once(model.input_shape)


def _logits(model: FloatModel, batch: Tensor) -> NDArray[np.float32]:
    """Of a batch; image by image where forward names a batch of 1, and so fails or gives one row for all."""
    try:
        together = model.module(batch)
        if len(together) == len(batch):
            return together.numpy()
    except RuntimeError:
        if len(batch) == 1:
            raise
    return torch.cat([model.module(image[None]) for image in batch]).numpy()


def batches_of(images: NDArray[np.uint8], model: FloatModel, size: int) -> Iterator[Tensor]:
    """uint8 [N, H, W, 3] images as float32 [B, 3, H, W], preprocessed, `size` at a time."""
    for start in range(0, len(images), size):
        yield torch.as_tensor(
            normalise(np.asarray(images[start : start + size]), preprocessing=model.preprocessing)
        )
