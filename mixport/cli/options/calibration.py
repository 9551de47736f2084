"""The options that decide the calibration images. Every default is None, so that mixport.toml fills what was
not typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_IMAGES, _PROMPTS, _GENERATOR, _FILTERS = (
    "Calibration images",
    "Prompts",
    "Generator",
    "Filters of drawn images",
)

CalibOption = Annotated[
    str | None,
    typer.Option(
        help=(
            "mixup, single or genq draw images from prompts; images:DIR or images:FILE.npz takes real "
            "ones; noise needs nothing."
        ),
        metavar="METHOD",
        show_default="mixup",
        rich_help_panel=_IMAGES,
    ),
]
ImagesOption = Annotated[
    int | None,
    typer.Option(help="Calibration images.", metavar="N", show_default="512", rich_help_panel=_IMAGES),
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="Seed of everything random.", metavar="S", show_default="0", rich_help_panel=_IMAGES),
]
CacheFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder of calibration images and stage results.",
        metavar="DIR",
        show_default="calib_cache",
        rich_help_panel=_IMAGES,
    ),
]
ClassesPerPromptOption = Annotated[
    int | None,
    typer.Option(
        help="Class names fused in one prompt of mixup, 2 to 4.",
        metavar="K",
        show_default="3 with the builtin generator, 2 with others",
        rich_help_panel=_PROMPTS,
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="The prompt, with {classes} where the names go.",
        metavar="TEXT",
        show_default="A photo of {classes}",
        rich_help_panel=_PROMPTS,
    ),
]
PairingOption = Annotated[
    str | None,
    typer.Option(
        help="How classes meet in a prompt of mixup: each equally often, by chance, or far apart in meaning.",
        metavar="balanced|uniform|far",
        show_default="balanced",
        rich_help_panel=_PROMPTS,
    ),
]
LabelTextOption = Annotated[
    str | None,
    typer.Option(
        help="The class name alone, or with its meaning, for names that mean several things.",
        metavar="name|gloss",
        show_default="name",
        rich_help_panel=_PROMPTS,
    ),
]
GeneratorOption = Annotated[
    str | None,
    typer.Option(
        help="builtin, which knows the ten CIFAR-10 classes at 32x32 pixels and is refused for other "
        "models unless it is typed out; "
        "or a diffusers text-to-image pipeline: a folder or a hub id.",
        metavar="ID",
        show_default="builtin",
        rich_help_panel=_GENERATOR,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Where the generator draws and reconstruction learns. Everything else runs on the CPU.",
        metavar="auto|cpu|cuda",
        show_default="auto",
        rich_help_panel=_GENERATOR,
    ),
]
GenRevisionOption = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit of a hub id.",
        metavar="REV",
        show_default="the newest",
        rich_help_panel=_GENERATOR,
    ),
]
GenSchedulerOption = Annotated[
    str | None,
    typer.Option(
        help="Scheduler class of diffusers.",
        metavar="CLASS",
        show_default="the generator's own",
        rich_help_panel=_GENERATOR,
    ),
]
GenStepsOption = Annotated[
    int | None,
    typer.Option(
        help="Denoising steps.", metavar="N", show_default="the generator's own", rich_help_panel=_GENERATOR
    ),
]
GenGuidanceOption = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance scale; 1 or less turns it off.",
        metavar="SCALE",
        show_default="the generator's own",
        rich_help_panel=_GENERATOR,
    ),
]
GenNegativeOption = Annotated[
    str | None,
    typer.Option(
        help="What to stay away from.", metavar="TEXT", show_default="nothing", rich_help_panel=_GENERATOR
    ),
]
GenSizeOption = Annotated[
    str | None,
    typer.Option(
        help="Size that the generator draws; images are then brought to the model's input size.",
        metavar="HxW",
        show_default="the generator's own",
        rich_help_panel=_GENERATOR,
    ),
]
GenDtypeOption = Annotated[
    str | None,
    typer.Option(
        help="Of the generator's weights. auto: float32 on a CPU, float16 on a GPU.",
        metavar="auto|float32|float16|bfloat16",
        show_default="auto",
        rich_help_panel=_GENERATOR,
    ),
]
GenBatchOption = Annotated[
    int | None,
    typer.Option(
        help="Images drawn at once.",
        metavar="N",
        show_default="by device and size",
        rich_help_panel=_GENERATOR,
    ),
]
GenSafetyCheckerOption = Annotated[
    bool | None,
    typer.Option(
        "--gen-safety-checker/--no-gen-safety-checker",
        help="The generator's own checker, which blackens images it objects to.",
        show_default="off",
        rich_help_panel=_GENERATOR,
    ),
]
KeepEnergyOption = Annotated[
    float | None,
    typer.Option(
        help="Keep this share of the drawn images: those the float model knows best (lowest energy).",
        metavar="SHARE",
        show_default="1.0",
        rich_help_panel=_FILTERS,
    ),
]
KeepStatisticsOption = Annotated[
    float | None,
    typer.Option(
        help=(
            "Keep this share: those that fit BatchNorm statistics best (CNN), or have the most varied "
            "patches (ViT)."
        ),
        metavar="SHARE",
        show_default="1.0",
        rich_help_panel=_FILTERS,
    ),
]
