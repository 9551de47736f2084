"""What is asked of a calibration set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixport.artifacts import Preprocessing
from mixport.errors import BadOptionError

#: Methods of the contract that need an image generator.
_PLANNED = ("mixup", "single", "genq", "distill")
_ALLOWED = "images:DIR, images:FILE.npz or noise"
_HINT = "mixport build --calib images:DIR ..."
_MAX_IMAGES = 1_000_000
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    """Everything that decides what the images are.

    Attributes:
        method: `images` or `noise`.
        source: folder or .npz file of real images; None for noise.
        images: how many are asked for; a smaller folder gives what it has.
        seed: chooses among real images, and makes noise.
        preprocessing: gives the size, and how real images are brought to it.
    """

    method: str
    source: str | None
    images: int
    seed: int
    preprocessing: Preprocessing


def parse_calibration(text: str, *, images: int, seed: int, preprocessing: Preprocessing) -> CalibrationRecipe:
    """Read `--calib`. Raises BadOptionError naming what is allowed; whether the source exists is `calibrate`'s to find out."""
    if not 1 <= images <= _MAX_IMAGES:
        raise BadOptionError(f"--images is {images}, allowed 1 to {_MAX_IMAGES}", hint="mixport build --images 512 ...")
    if not 0 <= seed <= _MAX_SEED:
        raise BadOptionError(f"--seed is {seed}, allowed 0 to {_MAX_SEED}", hint="mixport build --seed 0 ...")
    method, separator, source = text.strip().partition(":")
    if method in _PLANNED:
        raise BadOptionError(f"--calib {method} is not part of this version yet, allowed {_ALLOWED}", hint=_HINT)
    if method == "noise" and not separator:
        return CalibrationRecipe(method=method, source=None, images=images, seed=seed, preprocessing=preprocessing)
    if method == "images" and source:
        path = str(Path(source).expanduser())
        return CalibrationRecipe(method=method, source=path, images=images, seed=seed, preprocessing=preprocessing)
    raise BadOptionError(f"--calib is {text!r}, allowed {_ALLOWED}", hint=_HINT)
