"""Image files in the forms that mixport reads, made from the archives of the data folder."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE, _ROWS, _COLUMNS = 32, 25, 40
_IN_TILE = _ROWS * _COLUMNS
"""A tile holds 25 x 40 training images of 32 x 32 pixels."""


def cifar_calibration(data: Path, out: Path, *, count: int = 512, seed: int | None = None) -> Path:
    """CIFAR-10 training images as npz: the first `count` of the first tile (at most 1,000), or, with a seed,
    any `count` of all.
    """
    with zipfile.ZipFile(data / "cifar10_train_webp.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        total: int = json.loads(archive.read("labels.json"))["count"]
        if seed is None:
            images = _tile(archive, names[0])[:count]
        else:
            wanted = np.sort(np.random.default_rng(seed).permutation(total)[:count])
            tiles = {int(tile): _tile(archive, names[tile]) for tile in np.unique(wanted // _IN_TILE)}
            images = np.stack([tiles[int(one // _IN_TILE)][one % _IN_TILE] for one in wanted])
    np.savez(out, images=images)
    return out


def _tile(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    tile = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
    return (
        tile.reshape(_ROWS, _SIDE, _COLUMNS, _SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, _SIDE, _SIDE, 3)
    )


def imagenet_sample(data: Path, out: Path) -> Path:
    """The 500 ImageNet images, centre crop 224, with labels, as npz."""
    with zipfile.ZipFile(data / "imagenet_sample_500.zip") as archive:
        labels: dict[str, int] = json.loads(archive.read("labels.json"))
        inside = {Path(name).name: name for name in archive.namelist()}
        names = sorted(labels)
        pictures = [
            Image.open(io.BytesIO(archive.read(inside[Path(name).name]))).convert("RGB") for name in names
        ]
    images = np.stack([np.asarray(picture.crop((16, 16, 240, 240))) for picture in pictures])
    np.savez(out, images=images, labels=np.array([labels[name] for name in names], np.int64))
    return out
