"""A contact sheet: many calibration images in one picture, each with its prompt, for a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mixport.calibration.calibrate import IMAGES_FILE
from mixport.records.errors import BadInputError, StoreError

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_MARGIN = 28
_GAP = 14
_LEAST_TILE = 96
_MOST_TILE = 256
_LEAST_TITLE = 480
_MAX_PIXELS = 64_000_000
_MOST_LINES = 4
_TITLE_SIZE, _NOTE_SIZE, _CAPTION_SIZE = 22, 13, 12
_LEADING = 1.3
_ELLIPSIS = "..."
_PAPER, _INK, _MUTED = (250, 250, 247), (32, 36, 44), (104, 112, 126)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Places in pixels: tiles of (height, width) with room for captions below, under a head.

    Attributes:
        tile: (height, width) of an image as shown.
        caption: height below each image.
        head: height of the title above the images, margin not counted.
        columns: images a row.
        rows: rows of images.
        width: of the sheet, margins not counted.
    """

    tile: tuple[int, int]
    caption: int
    head: int
    columns: int
    rows: int
    width: int

    def place(self, position: int) -> tuple[int, int]:
        """Left and top of an image."""
        row, column = divmod(position, self.columns)
        return _MARGIN + column * (self.tile[1] + _GAP), _MARGIN + self.head + row * (
            self.tile[0] + self.caption + _GAP
        )

    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        return 2 * _MARGIN + self.width, 2 * _MARGIN + self.head + self.rows * (
            self.tile[0] + self.caption + _GAP
        ) - _GAP


def contact_sheet(
    set_dir: Path,
    out_png: Path,
    *,
    columns: int = 8,
    limit: int = 64,
    title: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
) -> int:
    """Write a PNG of the first `limit` images, `columns` a row; small images are enlarged by whole factors.

    Args:
        set_dir: folder of a calibration set.
        out_png: file to write.
        columns: images a row.
        limit: images at most.
        title: lines above the images, the first one larger.
        prompts: one an image, written below it; None for none.

    Returns:
        number of images shown.

    Raises:
        BadInputError: `columns` or `limit` below 1, not a calibration set, or a sheet of more than 64
            megapixels.
        StoreError: the PNG cannot be written.
    """
    if columns < 1 or limit < 1:
        raise BadInputError(
            f"columns is {columns} and limit {limit}, allowed 1 or more",
            hint="mixport calib sheet --columns 8 ...",
        )
    images = _load(set_dir)
    shown = min(limit, len(images))
    tile = _tile_size(images.shape[1], images.shape[2])
    font = ImageFont.load_default(size=_CAPTION_SIZE)
    captions = [wrap(text, font=font, width=tile[1], lines=_MOST_LINES) for text in (prompts or ())[:shown]]
    used = min(columns, shown)
    inner_width = max(used * (tile[1] + _GAP) - _GAP, _LEAST_TITLE if title else 0)
    heads = _wrapped_title(title, width=inner_width)
    layout = _Layout(
        tile=tile,
        caption=max((_height(len(lines), _CAPTION_SIZE) for lines in captions), default=0),
        head=sum(_height(1, size) for _, size in heads) + (_GAP if heads else 0),
        columns=used,
        rows=-(-shown // columns),
        width=inner_width,
    )
    width, height = layout.size()
    if width * height > _MAX_PIXELS:
        raise BadInputError(
            f"a sheet of {shown} images has {width}x{height} pixels, allowed {_MAX_PIXELS}",
            hint="use a smaller --limit",
        )
    sheet = Image.new("RGB", (width, height), _PAPER)
    _draw_title(sheet, heads)
    draw = ImageDraw.Draw(sheet)
    for position in range(shown):
        left, top = layout.place(position)
        sheet.paste(_fitted(np.asarray(images[position]), tile), (left, top))
        for line, text in enumerate(captions[position] if position < len(captions) else ()):
            draw.text(
                (left, top + tile[0] + 4 + round(line * _CAPTION_SIZE * _LEADING)), text, fill=_INK, font=font
            )
    try:
        sheet.save(out_png, format="PNG")
    except OSError as error:
        raise StoreError(
            f"{out_png} cannot be written: {error.strerror or error}", hint="choose another place for the PNG"
        ) from error
    return shown


def wrap(text: str, *, font: _Font, width: float, lines: int) -> list[str]:
    """Text in at most `lines` lines of at most `width` pixels; what does not fit ends in an ellipsis. Long
    words are broken.
    """
    made: list[str] = []
    line = ""
    for word in _pieces(text, font=font, width=width):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        made.append(line)
        line = word
    made.append(line)
    if len(made) <= lines:
        return [one for one in made if one]
    last = made[lines - 1]
    while last and font.getlength(last + _ELLIPSIS) > width:
        last = last[:-1]
    return [*made[: lines - 1], last.rstrip() + _ELLIPSIS]


def _pieces(text: str, *, font: _Font, width: float) -> list[str]:
    """Words, those wider than a line cut into parts that fit."""
    pieces: list[str] = []
    for word in text.split():
        part = ""
        for letter in word:
            if part and font.getlength(part + letter) > width:
                pieces.append(part)
                part = ""
            part += letter
        pieces.append(part)
    return pieces


def _wrapped_title(title: Sequence[str], *, width: float) -> list[tuple[str, int]]:
    heads: list[tuple[str, int]] = []
    for index, text in enumerate(title):
        size = _NOTE_SIZE if index else _TITLE_SIZE
        heads += [
            (line, size) for line in wrap(text, font=ImageFont.load_default(size=size), width=width, lines=2)
        ]
    return heads


def _draw_title(sheet: Image.Image, heads: Sequence[tuple[str, int]]) -> None:
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for text, size in heads:
        draw.text(
            (_MARGIN, top),
            text,
            fill=_INK if size == _TITLE_SIZE else _MUTED,
            font=ImageFont.load_default(size=size),
        )
        top += _height(1, size)


def _height(lines: int, size: int) -> int:
    return round(lines * size * _LEADING) + 4 if lines else 0


def _load(set_dir: Path) -> NDArray[np.uint8]:
    try:
        images = np.load(set_dir / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(
            f"{set_dir} is not a whole calibration set: {error}", hint="mixport calib verify"
        ) from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise BadInputError(
            f"{set_dir}: images are {images.dtype} {list(images.shape)}, allowed uint8 [N, H, W, 3]"
        )
    return images


def _tile_size(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest > _MOST_TILE:
        return max(1, height * _MOST_TILE // longest), max(1, width * _MOST_TILE // longest)
    factor = max(1, -(-_LEAST_TILE // longest))
    return height * factor, width * factor


def _fitted(pixels: NDArray[np.uint8], tile: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(pixels)
    enlarged = tile[0] >= image.height
    return image.resize(
        (tile[1], tile[0]), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    )
