"""The models that ship inside the package: where their files lie. How good they are: MODEL_CARD.md beside
this file.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def weights_file(name: str) -> Path | None:
    """The safetensors file of a classifier such as `cifar10-resnet20`; None where none ships."""
    path = _FOLDER / f"{name}.safetensors"
    return path if path.is_file() else None


def generator_folder() -> Path:
    """The embedded text-to-image pipeline, a folder in diffusers format."""
    return _FOLDER / "generator"
