"""Activations of all calibration images at one place of the graph: in memory while small, in a mapped file
when large.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor


class Activations:
    """One tensor for every image, filled batch by batch.

    Four-dimensional values are kept channels last, as convolutions read them fastest on CPUs.

    Attributes:
        rows: of the first axis that belong to one image (windows, tokens); 1 for most tensors.
        device: of the values kept; what is put in may come from another one.
    """

    def __init__(
        self, first: Tensor, *, images: int, batch: int, allocate: Callable[[tuple[int, ...]], Tensor]
    ) -> None:
        self.rows = first.shape[0] // batch
        self._spatial = first.dim() == 4
        ordered = self._ordered(first)
        self._values = allocate((images, self.rows, *ordered.shape[1:]))
        self.device = self._values.device

    def __len__(self) -> int:
        """Number of images."""
        return len(self._values)

    def put(self, start: int, values: Tensor) -> None:
        """Write the images from `start` on."""
        ordered = self._ordered(values)
        count = ordered.shape[0] // self.rows
        self._values[start : start + count] = ordered.reshape(count, self.rows, *ordered.shape[1:])

    def at(self, images: Tensor | slice) -> Tensor:
        """Values of some images, in the graph's shape."""
        taken = self._values[images] if isinstance(images, slice) else self._values.index_select(0, images)
        flat = taken.reshape(-1, *taken.shape[2:])
        return flat.permute(0, 3, 1, 2) if self._spatial else flat

    def _ordered(self, values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1) if self._spatial else values


class ActivationStore:
    """Where activations are kept: memory up to a limit for each tensor, files in a folder above it.

    Args:
        folder: for mapped files; their names go at once, their space with the tensor.
        largest: bytes that one tensor may take in memory.
        device: of tensors in memory. Other devices than CPUs hold all of them.
    """

    def __init__(self, folder: Path, *, largest: int, device: torch.device) -> None:
        self.folder, self.largest, self.device = folder, largest, device
        self._numbers = itertools.count()

    def allocate(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of this shape. Raises OSError where the disk is full."""
        count = 1
        for size in shape:
            count *= size
        if 4 * count <= self.largest or self.device.type != "cpu":
            return torch.empty(shape, device=self.device)
        path = self.folder / f"activations-{next(self._numbers)}.bin"
        _reserve(path, 4 * count)
        values = torch.from_file(str(path), shared=True, size=count, dtype=torch.float32)
        path.unlink()  # the mapping keeps the file alive, and nothing stays behind when the process dies
        return values.view(shape)


def _reserve(path: Path, size: int) -> None:
    """Take the space now: a write into a mapping for which the disk has no room kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def fill(images: int, batch: int, value: Callable[[slice], Tensor], *, store: ActivationStore) -> Activations:
    """Activations of `images` images, computed `batch` at a time."""
    made: Activations | None = None
    for part in slices(images, batch):
        values = value(part)
        if made is None:
            made = Activations(values, images=images, batch=part.stop - part.start, allocate=store.allocate)
        made.put(part.start, values)
    assert made is not None
    return made


def slices(images: int, batch: int) -> Iterator[slice]:
    """Consecutive parts of at most `batch` images."""
    for start in range(0, images, batch):
        yield slice(start, min(start + batch, images))
