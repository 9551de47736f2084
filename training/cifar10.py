"""CIFAR-10 as the training scripts read it: lossless WebP tiles in a zip, a thousand images a tile."""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE, _ROWS, _COLUMNS = 32, 25, 40
#: The last images of the training set decide every choice made while training; the test set decides none.
HELD_OUT = 1435


def training_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N], without the held-out ones."""
    images, labels = _tiles(folder / "cifar10_train_webp.zip")
    return images[:-HELD_OUT], labels[:-HELD_OUT]


def held_out_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The held-out training images, for choosing settings."""
    images, labels = _tiles(folder / "cifar10_train_webp.zip")
    return images[-HELD_OUT:], labels[-HELD_OUT:]


def test_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The test images, for reporting only."""
    with np.load(folder / "cifar10_test.npz", allow_pickle=False) as archive:
        images: NDArray[np.uint8] = archive["images"]
        labels: NDArray[np.int64] = archive["labels"]
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


def normalise(images: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Uint8 [N, 3, H, W] to float32 (x / 255 - mean) / std, channels last."""
    scale = torch.tensor(std, device=images.device).mul(255.0).reciprocal().view(1, 3, 1, 1)
    offset = (torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)).view(
        1, 3, 1, 1
    )
    return (images.float() * scale - offset).contiguous(memory_format=torch.channels_last)


def crop_and_flip(images: Tensor, *, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image shifted by up to `padding` pixels (edges reflected) and mirrored with probability one
    half.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    corner = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
    rows = corner[0] + torch.arange(height, device=images.device)
    columns = corner[1] + torch.arange(width, device=images.device)
    mirrored = torch.rand((count, 1), generator=generator).to(images.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _tiles(path: Path) -> tuple[Tensor, Tensor]:
    with zipfile.ZipFile(path) as archive:
        described = json.loads(archive.read("labels.json"))
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        tiles = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    per_tile = [
        tile.reshape(_ROWS, _SIDE, _COLUMNS, _SIDE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, _SIDE, _SIDE)
        for tile in tiles
    ]
    count = int(described["count"])
    images = np.concatenate(per_tile)[:count]
    return torch.from_numpy(np.ascontiguousarray(images)), torch.tensor(
        described["labels"][:count], dtype=torch.int64
    )
