"""Options that name a float model, and say how it is opened and what its pixels are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from mixport.pipeline.options.drawing import DrawOptions
from mixport.pipeline.options.shown import MODEL, Shown
from mixport.pipeline.options.spelling import (
    check_mean,
    check_size,
    check_std,
    read_pairs,
    read_size,
    read_triple,
)


class ModelOptions(DrawOptions):
    """Options of the model, under the names they have on the command line."""

    model: Annotated[
        str,
        Shown(
            help="builtin:NAME, timm:ARCH, package.module:factory, or FILE.pt2.",
            panel=MODEL,
            metavar="[MODEL]",
            argument=True,
        ),
    ] = "builtin:cifar10-resnet20"
    weights: Annotated[
        Path | None,
        Shown(
            help="safetensors state dict; a .pth only through weights_only.",
            panel=MODEL,
            metavar="FILE",
            default="the model's own: builtin or timm's pretrained",
        ),
    ] = None
    random_weights: Annotated[
        bool,
        Shown(
            help="Seeded random weights, to try an architecture without its weights.",
            panel=MODEL,
        ),
    ] = False
    model_arg: Annotated[
        dict[str, str],
        Shown(
            help="Passed to the model's factory. Repeatable.",
            panel=MODEL,
            metavar="KEY=VALUE",
            default="none",
        ),
    ] = Field(default_factory=dict)
    classes: Annotated[
        Path | None,
        Shown(
            help='JSON list of class names, or of {"name", "gloss"}.',
            panel=MODEL,
            metavar="FILE",
            default="the model's own",
        ),
    ] = None
    input_size: Annotated[
        tuple[int, int] | None,
        Shown(
            help="Input side in pixels, or HEIGHTxWIDTH.",
            panel=MODEL,
            metavar="SIZE",
            default="the model's own",
        ),
    ] = None
    mean: Annotated[
        tuple[float, float, float] | None,
        Shown(
            help="Per RGB channel, in units of [0, 1].",
            panel=MODEL,
            metavar="R,G,B",
            default="the model's own",
        ),
    ] = None
    std: Annotated[
        tuple[float, float, float] | None,
        Shown(
            help="Per RGB channel, in units of [0, 1].",
            panel=MODEL,
            metavar="R,G,B",
            default="the model's own",
        ),
    ] = None
    crop: Annotated[
        float | None,
        Shown(
            help="Crop side / resized shorter side.",
            panel=MODEL,
            metavar="FRACTION",
            default="the model's own",
        ),
    ] = Field(default=None, gt=0.0, le=1.0)

    @field_validator("model_arg", mode="before")
    @classmethod
    def _read_model_arg(cls, value: object) -> object:
        return read_pairs(value)

    @field_validator("input_size", mode="before")
    @classmethod
    def _read_input_size(cls, value: object) -> object:
        return read_size(value)

    @field_validator("input_size")
    @classmethod
    def _check_input_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        return check_size(value)

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _read_triple(cls, value: object) -> object:
        return read_triple(value)

    @field_validator("mean")
    @classmethod
    def _check_mean(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        return check_mean(value)

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        return check_std(value)
