"""The options that name a model and its preprocessing. Every default is None, so that mixport.toml fills what
was not typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Model"

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        help="builtin:NAME, timm:ARCH, package.module:factory, or FILE.pt2.",
        metavar="[MODEL]",
        show_default="builtin:cifar10-resnet20",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        help="safetensors state dict; a .pth only through weights_only.",
        metavar="FILE",
        show_default="the model's own: builtin or timm's pretrained",
        rich_help_panel=_PANEL,
    ),
]
RandomWeightsOption = Annotated[
    bool | None,
    typer.Option(
        "--random-weights",
        help="Seeded random weights, to try an architecture without its weights.",
        rich_help_panel=_PANEL,
    ),
]
ModelArgOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Passed to the model's factory. Repeatable.",
        metavar="KEY=VALUE",
        show_default="none",
        rich_help_panel=_PANEL,
    ),
]
ClassesOption = Annotated[
    Path | None,
    typer.Option(
        help='JSON list of class names, or of {"name", "gloss"}.',
        metavar="FILE",
        show_default="the model's own",
        rich_help_panel=_PANEL,
    ),
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(
        help="Input side in pixels, or HEIGHTxWIDTH.",
        metavar="SIZE",
        show_default="the model's own",
        rich_help_panel=_PANEL,
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        help="Per RGB channel, in units of [0, 1].",
        metavar="R,G,B",
        show_default="the model's own",
        rich_help_panel=_PANEL,
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        help="Per RGB channel, in units of [0, 1].",
        metavar="R,G,B",
        show_default="the model's own",
        rich_help_panel=_PANEL,
    ),
]
CropOption = Annotated[
    float | None,
    typer.Option(
        help="Crop side / resized shorter side.",
        metavar="FRACTION",
        show_default="the model's own",
        rich_help_panel=_PANEL,
    ),
]
