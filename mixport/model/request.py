"""What is asked of a float model before it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PreprocessingOverrides:
    """Preprocessing that the user states; None keeps the model's own.

    Attributes:
        input_size: (height, width) in pixels.
        mean: per RGB channel, in units of [0, 1].
        std: per RGB channel, in units of [0, 1].
        crop_fraction: crop side / resized shorter side.
    """

    input_size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model, and how it is opened: the arguments of `load_model`.

    Attributes:
        source: builtin:NAME, timm:ARCH, package.module:factory or FILE.pt2.
        weights: state dict file; None takes the model's own.
        random_weights: seeded random weights instead.
        seed: of the random weights.
        args: options for the factory, Python literals or strings.
        classes: JSON list of class names.
        overrides: preprocessing that replaces the model's own.
    """

    source: str
    weights: Path | None = None
    random_weights: bool = False
    seed: int = 0
    args: Mapping[str, str] = field(default_factory=dict[str, str])
    classes: Path | None = None
    overrides: PreprocessingOverrides = PreprocessingOverrides()
