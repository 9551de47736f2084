"""A contact sheet: many calibration images in one picture, for a look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixport.calibration.generate import IMAGES_FILE
from mixport.errors import BadInputError, StoreError

_GAP = 4
_LEAST_TILE = 64
_MOST_TILE = 256
_MAX_PIXELS = 64_000_000
_BACKGROUND = (32, 32, 32)


def contact_sheet(set_dir: Path, out_png: Path, *, columns: int = 8, limit: int = 64) -> int:
    """Write a PNG of the first `limit` images, `columns` a row; small images are enlarged by whole factors.

    Returns:
        number of images shown.

    Raises:
        BadInputError: `columns` or `limit` below 1, not a calibration set, or a sheet of more than 64 megapixels.
        StoreError: the PNG cannot be written.
    """
    if columns < 1 or limit < 1:
        raise BadInputError(f"columns is {columns} and limit {limit}, allowed 1 or more", hint="mixport calib sheet --columns 8 ...")
    images = _load(set_dir)
    shown = min(limit, len(images))
    height, width = _tile_size(images.shape[1], images.shape[2])
    rows = -(-shown // columns)
    used_columns = min(columns, shown)
    sheet_size = (used_columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    if sheet_size[0] * sheet_size[1] > _MAX_PIXELS:
        raise BadInputError(
            f"a sheet of {shown} images has {sheet_size[0]}x{sheet_size[1]} pixels, allowed {_MAX_PIXELS}", hint="use a smaller --limit"
        )
    sheet = Image.new("RGB", sheet_size, _BACKGROUND)
    for position in range(shown):
        row, column = divmod(position, columns)
        tile = Image.fromarray(np.asarray(images[position]))
        enlarged = height >= tile.height
        tile = tile.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR)
        sheet.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    try:
        sheet.save(out_png, format="PNG")
    except OSError as error:
        raise StoreError(f"{out_png} cannot be written: {error.strerror or error}", hint="choose another place for the PNG") from error
    return shown


def _load(set_dir: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        images = np.load(set_dir / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"{set_dir} is not a whole calibration set: {error}", hint="mixport calib verify") from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise BadInputError(f"{set_dir}: images are {images.dtype} {list(images.shape)}, allowed uint8 [N, H, W, 3]")
    return images


def _tile_size(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest > _MOST_TILE:
        return max(1, height * _MOST_TILE // longest), max(1, width * _MOST_TILE // longest)
    factor = max(1, -(-_LEAST_TILE // longest))
    return height * factor, width * factor
