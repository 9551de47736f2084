"""Batches of one epoch: every image once, in an order and with an augmentation of the epoch's own."""

# timm gives no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.mixup import Mixup  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from torch.nn import functional

from mixport.records.calibration_set import Preprocessing
from mixport.storage.images import normalise
from mixport.train.data.training_images import TrainingImages

Augmentation = Literal["flip+crop", "flip", "none"]
PixelMix = Literal["none", "mixup", "cutmix"]

_ALPHA = 0.2
"""Of the Beta distribution that mixup's share of an image is drawn from; cutmix takes 1.0 (timm's defaults in
its own recipes).
"""
_SHIFT = 8
"""An image moves by up to an eighth of its side: 4 pixels of 32, the usual augmentation of CIFAR-10."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's images.

    Attributes:
        images: float32 [B, 3, H, W], preprocessed.
        targets: int64 [B] classes, float32 [B, classes] shares of classes where pixels are mixed, None
            without labels.
    """

    images: Tensor
    targets: Tensor | None


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Gives the batches of any epoch.

    Attributes:
        data: images.
        preprocessing: of the model.
        batch: images a step.
        augmentation: of single images.
        mix: of the pixels of two images.
        classes: outputs of the model.
        seed: of everything random.
        device: where batches go.
        channels_last: memory order of the images.
    """

    data: TrainingImages
    preprocessing: Preprocessing
    batch: int
    augmentation: Augmentation
    mix: PixelMix
    classes: int
    seed: int
    device: torch.device
    channels_last: bool = True

    @property
    def steps(self) -> int:
        """Steps of an epoch; images that do not fill a batch wait for another epoch's order."""
        return max(1, len(self.data.order) // self.batch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Batches of epoch `number`, the same whenever they are asked for."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        mixed = torch.randperm(len(self.data.order), generator=generator).numpy()
        for step in range(self.steps):
            places = self.data.order[mixed[step * self.batch : (step + 1) * self.batch]]
            yield self._batch(np.sort(places), generator)

    def held_out(self) -> Iterator[Batch]:
        """Images that are only looked at, as they are."""
        for start in range(0, len(self.data.held_out), self.batch):
            places = self.data.held_out[start : start + self.batch]
            labels = None if self.data.labels is None else torch.as_tensor(self.data.labels[places])
            yield Batch(images=self._pixels(np.asarray(self.data.images[places])), targets=labels)

    def _batch(self, places: NDArray[np.int64], generator: torch.Generator) -> Batch:
        images = np.asarray(self.data.images[places])
        if self.augmentation != "none":
            images = augment(images, generator=generator, shift=self.augmentation == "flip+crop")
        pixels = self._pixels(images)
        if self.data.labels is None:
            labels = None
        else:
            labels = torch.as_tensor(self.data.labels[places]).to(self.device)
        if self.mix == "none" or len(pixels) % 2:
            return Batch(images=pixels, targets=labels)
        return self._mixed(pixels, labels, generator)

    def _mixed(self, pixels: Tensor, labels: Tensor | None, generator: torch.Generator) -> Batch:
        """timm's mixup or cutmix, whose own randomness is NumPy's global one: seeded here, and put back."""
        mixup = Mixup(
            mixup_alpha=_ALPHA if self.mix == "mixup" else 0.0,
            cutmix_alpha=1.0 if self.mix == "cutmix" else 0.0,
            label_smoothing=0.0,
            num_classes=self.classes,
        )
        state = np.random.get_state()
        np.random.seed(int(torch.randint(0, 2**31, (1,), generator=generator)))
        try:
            given = labels if labels is not None else torch.zeros(len(pixels), dtype=torch.int64)
            images, targets = mixup(pixels, given.to(self.device))
        finally:
            np.random.set_state(state)
        return Batch(images=images, targets=None if labels is None else targets)

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.as_tensor(normalise(images, preprocessing=self.preprocessing)).to(self.device)
        return pixels.contiguous(memory_format=torch.channels_last) if self.channels_last else pixels


def augment(images: NDArray[np.uint8], *, generator: torch.Generator, shift: bool) -> NDArray[np.uint8]:
    """Each image mirrored with probability one half, and moved by up to an eighth of its side, black where
    nothing comes in.

    Args:
        images: uint8 [B, H, W, 3].
        generator: of the choices.
        shift: False mirrors only.
    """
    count, height, width, _ = images.shape
    down, across = (height // _SHIFT, width // _SHIFT) if shift else (0, 0)
    padded = functional.pad(torch.as_tensor(images), (0, 0, across, across, down, down))
    first = torch.randint(0, 2 * down + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * across + 1, (count, 1), generator=generator)
    rows, columns = first + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].numpy()
