"""What is asked of a calibration set: frozen records, and how `--calib` becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadOptionError

Strategy = Literal["single", "mixup", "genq"]
Pairing = Literal["balanced", "uniform", "far"]
LabelText = Literal["name", "gloss"]

#: Methods that draw images with a generator; the name of each is its prompt strategy.
DRAWN: tuple[Strategy, ...] = ("mixup", "single", "genq")
#: Methods that the contract names and this version cannot run.
_PLANNED = ("distill",)
_ALLOWED = "mixup, single, genq, images:DIR, images:FILE.npz or noise"
_HINT = "mixport build --calib mixup ..."
_MAX_IMAGES = 1_000_000
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class PromptRecipe:
    """How class names become prompts.

    Attributes:
        strategy: one class a prompt, several fused in one, or an adjective and a class.
        class_names: in index order.
        glosses: a short meaning a class, for `label_text="gloss"`; None where there are none.
        classes_per_prompt: k of `mixup`; 1 otherwise.
        template: text with exactly one field, `{classes}`, which becomes the labels with their articles and,
            for genq, the adjective (`a cat and a dog`, `a small cat`); None is `A photo of {classes}`.
        pairing: how classes meet in a prompt: balanced permutations, uniform, or partners far apart in text
            embedding.
        label_text: the bare name, or name and gloss against polysemy.
        seed: of the choice of classes and adjectives.
    """

    strategy: Strategy
    class_names: tuple[str, ...]
    glosses: tuple[str, ...] | None = None
    classes_per_prompt: int = 2
    template: str | None = None
    pairing: Pairing = "balanced"
    label_text: LabelText = "name"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """Which text-to-image pipeline draws, and how. None takes the default that is known for the generator.

    Attributes:
        source: `builtin`, a folder in diffusers format, or a hub id.
        revision: branch, tag or commit of a hub id.
        scheduler: class name in diffusers; None keeps the pipeline's own.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 or less turns it off.
        negative_prompt: what to stay away from; empty for none.
        size: (height, width) that the pipeline draws; None is its own.
        dtype: of the weights while drawing; auto is float32 on a CPU and float16 on a GPU.
        safety_checker: keep the pipeline's safety checker, which blackens images it objects to.
        batch: images drawn at once; None chooses by device and size.
        device: auto, cpu or cuda.
    """

    source: str = "builtin"
    revision: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    safety_checker: bool = False
    batch: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Which drawn images are kept (GenQ, arXiv 2312.05272); a share of 1 keeps all.

    Attributes:
        keep_energy: share with the lowest energy -logsumexp(logits) under the float model.
        keep_statistics: share that disturbs BatchNorm statistics least (CNN), or has the highest
            patch-similarity entropy (ViT).
    """

    keep_energy: float = 1.0
    keep_statistics: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    """Everything that decides what the images are.

    Attributes:
        method: `images`, `noise`, or a prompt strategy.
        source: folder or .npz file of real images; None otherwise.
        images: how many are asked for; a smaller folder gives what it has.
        seed: chooses among real images or makes noise; drawn images have the seed of their prompts.
        preprocessing: gives the size, and how images are brought to it.
        prompts: of a drawn set; None otherwise.
        generator: of a drawn set; None otherwise.
        filters: of a drawn set.
    """

    method: str
    source: str | None
    images: int
    seed: int
    preprocessing: Preprocessing
    prompts: PromptRecipe | None = None
    generator: GeneratorSettings | None = None
    filters: FilterSettings = FilterSettings()


def parse_calibration(
    text: str,
    *,
    images: int,
    seed: int,
    preprocessing: Preprocessing,
    prompts: PromptRecipe | None = None,
    generator: GeneratorSettings | None = None,
    filters: FilterSettings | None = None,
) -> CalibrationRecipe:
    """Read `--calib`.

    Args:
        text: as typed.
        images: how many.
        seed: of everything random.
        preprocessing: of the model.
        prompts: for a drawn set, with the strategy that `text` names.
        generator: for a drawn set; the builtin one where None.
        filters: for a drawn set; none where None.

    Raises:
        BadOptionError: naming what is allowed; whether a source exists is `calibrate`'s to find out.
    """
    if not 1 <= images <= _MAX_IMAGES:
        raise BadOptionError(
            f"--images is {images}, allowed 1 to {_MAX_IMAGES}", hint="mixport build --images 512 ..."
        )
    if not 0 <= seed <= _MAX_SEED:
        raise BadOptionError(f"--seed is {seed}, allowed 0 to {_MAX_SEED}", hint="mixport build --seed 0 ...")
    method, separator, source = text.strip().partition(":")
    if method in _PLANNED:
        raise BadOptionError(
            f"--calib {method} is not part of this version yet, allowed {_ALLOWED}", hint=_HINT
        )
    if method in DRAWN and not separator:
        if prompts is None:
            raise BadOptionError(
                f"--calib {method} needs class names, which this model does not bring",
                hint=(
                    "--classes FILE.json with one name a class, --calib images:DIR with pictures of your "
                    "own, or --calib noise"
                ),
            )
        if prompts.strategy != method:
            raise BadOptionError(f"--calib is {method}, its prompts are for {prompts.strategy}", hint=_HINT)
        return CalibrationRecipe(
            method=method,
            source=None,
            images=images,
            seed=seed,
            preprocessing=preprocessing,
            prompts=prompts,
            generator=generator or GeneratorSettings(),
            filters=filters or FilterSettings(),
        )
    if method == "noise" and not separator:
        return CalibrationRecipe(
            method=method, source=None, images=images, seed=seed, preprocessing=preprocessing
        )
    if method == "images" and source:
        try:
            path = str(Path(source).expanduser())
        except RuntimeError as error:
            raise BadOptionError(
                f"--calib is {text!r}: the home folder in it is unknown here", hint="a path without ~"
            ) from error
        return CalibrationRecipe(
            method=method, source=path, images=images, seed=seed, preprocessing=preprocessing
        )
    raise BadOptionError(f"--calib is {text!r}, allowed {_ALLOWED}", hint=_HINT)
