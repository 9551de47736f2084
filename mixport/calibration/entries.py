"""A calibration set as a store entry: file names, what its key and its metadata hold, and how it is read
back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from mixport.calibration.prompts.prompts import Prompt
from mixport.calibration.recipe import CalibrationRecipe
from mixport.records.calibration_set import CalibrationSet
from mixport.records.errors import StoreError
from mixport.records.fingerprint import sha256_arrays
from mixport.storage.store import Store

KIND = "calibration"
IMAGES_FILE = "images.npy"
#: Beside the images of a drawn set: a JSON list of {"index", "text", "classes", "seed"}, one an image.
PROMPTS_FILE = "prompts.json"

_FORMAT = 1
_MAX_PROMPTS_BYTES = 1 << 30


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    index: int
    text: str
    classes: tuple[int, ...]
    seed: int


_ROWS = TypeAdapter(list[_Row])


def asked(recipe: CalibrationRecipe) -> dict[str, object]:
    """The part of a set's key that every method has."""
    return {
        "format": _FORMAT,
        "method": recipe.method,
        "images": recipe.images,
        "seed": recipe.seed,
        "preprocessing": {
            "size": recipe.preprocessing.size,
            "crop_fraction": recipe.preprocessing.crop_fraction,
            "interpolation": recipe.preprocessing.interpolation,
        },
    }


def describe(recipe: CalibrationRecipe, *, count: int) -> dict[str, Any]:
    """The metadata that every set has."""
    height, width = recipe.preprocessing.size
    return {
        "method": recipe.method,
        "source": recipe.source,
        "images": recipe.images,
        "seed": recipe.seed,
        "count": count,
        "size": [height, width],
        "generator": None,
    }


def content_sha256(path: Path) -> str:
    """SHA-256 over the pixels of an images file."""
    return sha256_arrays({"images": np.load(path, mmap_mode="r", allow_pickle=False)})


def read_set(store: Store, key: str) -> CalibrationSet:
    """The record of an entry that is there and whole."""
    metadata = store.metadata(KIND, key)
    return CalibrationSet(
        images_path=store.root / KIND / key / IMAGES_FILE,
        count=metadata["count"],
        method=metadata["method"],
        recipe_key=key,
        content_sha256=metadata["content_sha256"],
        generator=metadata["generator"],
        blackened=len(metadata.get("blackened", ())),
    )


def write_prompts(path: Path, prompts: Mapping[int, Prompt]) -> None:
    """Write the prompts of a set's images, by their index in the sequence that was drawn, in the order of the
    images.
    """
    rows = [
        {"index": index, "text": one.text, "classes": list(one.classes), "seed": one.seed}
        for index, one in prompts.items()
    ]
    path.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """What `write_prompts` wrote, in the order of the images.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        if (size := path.stat().st_size) > _MAX_PROMPTS_BYTES:
            raise ValueError(f"{size} bytes, allowed {_MAX_PROMPTS_BYTES}")
        rows = _ROWS.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", hint="mixport calib verify"
        ) from error
    return tuple(Prompt(text=row.text, classes=row.classes, seed=row.seed) for row in rows)


def prompts_of(entry: Path) -> tuple[str, ...] | None:
    """The text each image of a set was drawn from, in the order of the images; None where the set was not
    drawn.

    Raises:
        StoreError: the file cannot be read.
    """
    path = entry / PROMPTS_FILE
    return tuple(one.text for one in read_prompts(path)) if path.is_file() else None
