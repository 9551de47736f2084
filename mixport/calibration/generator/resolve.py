"""Which pipeline draws: `builtin`, a local folder or a hub id, all resolved to one folder, and the settings
known to suit it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixport import builtin
from mixport.calibration.generator.hub import hub_folder
from mixport.calibration.generator.pipeline_folder import INDEX_FILE, PipelineFolder, read_pipeline_folder
from mixport.records.errors import BadInputError, BadOptionError

BUILTIN = "builtin"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a generator draws with where nothing is asked.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 or less turns it off.
        size: (height, width); None is the pipeline's own.
        classes_per_prompt: k of `mixup`; 2 is the publication's main setting (arXiv 2507.21947).
        classes: all that it can draw; None where it was trained on the texts of the world.
        draws: largest (height, width) that it can draw; None where that is large enough for any model.
    """

    steps: int = 25
    guidance: float = 3.5
    size: tuple[int, int] | None = None
    classes_per_prompt: int = 2
    classes: frozenset[str] | None = None
    draws: tuple[int, int] | None = None


_CIFAR10 = frozenset(
    {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
)
_FAR = 2.0
"""Drawn images are resized to the model's input: made larger by more than this factor, they have none of the
detail that it looks for.
"""

#: By the last part of a hub id or the name of a folder, lower case. Sources: the model cards; guidance 3.5
#: for Stable Diffusion
#: 1.5 is GenQ's (arXiv 2312.05272). Few-step models were distilled to work without guidance. Those of our own
#: are measured.
KNOWN = {
    BUILTIN: Defaults(steps=20, guidance=4.0, classes_per_prompt=3, classes=_CIFAR10, draws=(32, 32)),
    "stable-diffusion-v1-4": Defaults(steps=25, guidance=3.5),
    "stable-diffusion-v1-5": Defaults(steps=25, guidance=3.5),
    "stable-diffusion-2-1": Defaults(steps=25, guidance=3.5, size=(768, 768)),
    "stable-diffusion-2-1-base": Defaults(steps=25, guidance=3.5),
    "stable-diffusion-xl-base-1.0": Defaults(steps=25, guidance=5.0),
    "sd-turbo": Defaults(steps=2, guidance=0.0),
    "sdxl-turbo": Defaults(steps=2, guidance=0.0, size=(512, 512)),
    "pixart-xl-2-256x256": Defaults(steps=20, guidance=4.5),
    "pixart-xl-2-512x512": Defaults(steps=20, guidance=4.5),
    "pixart-sigma-xl-2-256x256": Defaults(steps=20, guidance=4.5),
    "pixart-sigma-xl-2-512-ms": Defaults(steps=20, guidance=4.5),
}


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A pipeline on this machine.

    Attributes:
        name: as asked for.
        folder: its files.
        defaults: settings that suit it.
    """

    name: str
    folder: PipelineFolder
    defaults: Defaults


def is_remote(source: str) -> bool:
    """Whether resolving `source` may ask the hub."""
    return source != BUILTIN and _HUB_ID.fullmatch(source) is not None and not _local(source).exists()


def resolve_generator(source: str, *, revision: str | None = None) -> Generator:
    """Find a generator's folder; a hub id is fetched where it is not here yet.

    Raises:
        BadInputError: unknown, no pipeline, custom code, unsafe weights, or the hub cannot be reached.
    """
    return Generator(
        name=source,
        folder=read_pipeline_folder(_folder(source, revision=revision)),
        defaults=known_defaults(source),
    )


def known_defaults(source: str) -> Defaults:
    """What a generator draws with where nothing is asked, whether it is here or not."""
    return KNOWN.get(_last_part(source), Defaults())


def check_suits(
    source: str, *, class_names: Sequence[str] | None, size: tuple[int, int], method: str
) -> None:
    """Refuse a generator that cannot draw what a model knows, at about the size that it takes.

    Args:
        source: of the generator.
        class_names: of the model; None where it brings none.
        size: (height, width) of its input, in pixels.
        method: as `--calib` names it.

    Raises:
        BadOptionError: naming the class or the size, and what to take instead.
    """
    known = known_defaults(source)
    names = class_names or ()
    foreign = [name for name in names if known.classes is not None and name.casefold() not in known.classes]
    reasons: list[str] = []
    if known.classes is not None and foreign:
        which = ", ".join(map(repr, foreign[:2])) + (", ..." if len(foreign) > 2 else "")
        reasons.append(
            f"{len(foreign)} of the model's {len(names)} classes are none of the "
            f"{len(known.classes)} that it knows: {which}"
        )
    if known.draws is not None and any(
        own > _FAR * drawn for own, drawn in zip(size, known.draws, strict=True)
    ):
        reasons.append(
            f"the model takes {size[0]}x{size[1]} pixels, it draws {known.draws[0]}x{known.draws[1]}"
        )
    if reasons:
        raise BadOptionError(
            (
                f"--calib {method}: the {source} generator cannot draw images for this model: "
                f"{'; '.join(reasons)}"
            ),
            hint="--calib images:DIR with pictures of your own (images:FILE.npz), --calib noise, "
            "--generator with a model that knows the "
            f"classes, such as stabilityai/sd-turbo, or --generator {source} typed out to take it "
            "all the same",
        )


def _folder(source: str, *, revision: str | None) -> Path:
    if source == BUILTIN:
        folder = builtin.generator_folder()
        if not (folder / INDEX_FILE).is_file():
            raise BadInputError(
                f"this installation lacks the builtin generator: there is no {folder / INDEX_FILE}",
                hint="install mixport again, or --generator with a folder or a hub id",
            )
        return folder
    path = _local(source)
    try:
        is_folder, exists = bool(source) and path.is_dir(), bool(source) and path.exists()
    except OSError:  # a name that no file system takes
        is_folder, exists = False, False
    if is_folder:
        return path
    if exists:
        raise BadInputError(
            f"generator {source} is a file, allowed builtin, a folder in diffusers format or a hub id",
            hint=(
                "convert it: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR), then "
                "--generator DIR"
            ),
        )
    if _HUB_ID.fullmatch(source) is None:
        raise BadInputError(
            (
                f"unknown generator {source!r}: neither builtin, nor a folder here, nor a hub id such as "
                "stabilityai/sd-turbo"
            ),
            hint="--generator builtin",
        )
    return hub_folder(source, revision=revision)


def _local(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~ of a user who is not here
        return Path(source)


def _last_part(source: str) -> str:
    return source if source == BUILTIN else _local(source).absolute().name.lower()
