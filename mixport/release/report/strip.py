"""A few calibration images with their prompts, small enough to stand inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SHOWN = 12
#: Up to this many pixels an image stays as it is; larger ones get this longest side and 256 colours. Twelve
#: then need less than
#: 160 KB of text, whatever they show.
_SMALL_PIXELS = 52 * 52
_LONGEST = 96
_COLOURS = 256
_LONGEST_PROMPT = 300


@dataclass(frozen=True, kw_only=True)
class StripImage:
    """One image of the strip: a PNG as a data URI, and what it was drawn from."""

    uri: str
    prompt: str


def strip_images(images: NDArray[np.uint8], prompts: Sequence[str]) -> tuple[StripImage, ...]:
    """Twelve images at even distances, or all of fewer.

    Args:
        images: uint8 [N, H, W, 3]; may be memory-mapped.
        prompts: one an image.
    """
    count = min(len(images), len(prompts))
    shown = min(_SHOWN, count)
    chosen = [position * count // shown for position in range(shown)]
    return tuple(
        StripImage(uri=_data_uri(np.asarray(images[index])), prompt=_shortened(prompts[index]))
        for index in chosen
    )


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    if image.width * image.height > _SMALL_PIXELS:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        image = image.quantize(_COLOURS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _LONGEST_PROMPT else f"{prompt[:_LONGEST_PROMPT]}..."
