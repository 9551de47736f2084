"""Image files in the forms that mixport reads, made from the archives of the data folder."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE, _ROWS, _COLUMNS = 32, 25, 40
"""A tile holds 25 x 40 training images of 32 x 32 pixels."""


def cifar_calibration(data: Path, out: Path, *, count: int = 512) -> Path:
    """The first `count` CIFAR-10 training images (at most one tile, 1,000), as npz."""
    with zipfile.ZipFile(data / "cifar10_train_webp.zip") as archive:
        first = min(name for name in archive.namelist() if name.endswith(".webp"))
        tile = np.asarray(Image.open(io.BytesIO(archive.read(first))).convert("RGB"))
    images = tile.reshape(_ROWS, _SIDE, _COLUMNS, _SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, _SIDE, _SIDE, 3)
    np.savez(out, images=images[:count])
    return out


def imagenet_sample(data: Path, out: Path) -> Path:
    """The 500 ImageNet images, centre crop 224, with labels, as npz."""
    with zipfile.ZipFile(data / "imagenet_sample_500.zip") as archive:
        labels: dict[str, int] = json.loads(archive.read("labels.json"))
        inside = {Path(name).name: name for name in archive.namelist()}
        names = sorted(labels)
        pictures = [Image.open(io.BytesIO(archive.read(inside[Path(name).name]))).convert("RGB") for name in names]
    images = np.stack([np.asarray(picture.crop((16, 16, 240, 240))) for picture in pictures])
    np.savez(out, images=images, labels=np.array([labels[name] for name in names], np.int64))
    return out
