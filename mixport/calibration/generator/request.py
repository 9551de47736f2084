"""A drawing, settled before anything is loaded: every None of the recipe replaced, and the key that names
what will come out.

The key covers everything but the count, since image i does not depend on how many are drawn: the prompt
recipe, the content of the files that are loaded (not their place), scheduler, steps, guidance, size, negative
prompt, dtype, safety checker, device kind, versions, and the batch.

The batch is in it because floating point lets it show. Latents come from one CPU generator an image and do
not depend on the batch, but convolutions and matrix products sum in an order that does. Measured in float32
on one CPU, 64 images of 32 x 32 at batch 1, 2, 4, 16 and 64: differences of at most 1.2e-6 before rounding;
after it, one grey level in one of 49,152 values of a tiny pipeline, and in 8 to 13 of 196,608 values (7 to 11
of 64 images) of a middle-sized one. With the batch in the key and batches at fixed places, bytes are the same
again on the same kind of machine, whatever was interrupted. Where memory runs out a batch is drawn in smaller
pieces: those are recorded with its images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixport.calibration.generator.file_hashes import file_hashes
from mixport.calibration.generator.resolve import Generator, resolve_generator
from mixport.calibration.prompts.phrases import ADJECTIVES, DEFAULT_TEMPLATE
from mixport.calibration.recipe import GeneratorSettings, PromptRecipe
from mixport.records.errors import BadInputError, BadOptionError
from mixport.records.fingerprint import sha256_json
from mixport.records.machine import resolve_device

SAFETY_CHECKER = "safety_checker"

#: Change it whenever the same request gives other images.
_FORMAT = 2
_PACKAGES = ("diffusers", "torch", "transformers")
_HASHES_FILE = "file_hashes.json"
# (largest number of pixels an image, batch): a few hundred thousand pixels at once keep a CPU's caches and a
# GPU's units busy.
_CPU_BATCHES = ((64 * 64, 64), (128 * 128, 16), (256 * 256, 4))
_GPU_BATCHES = ((64 * 64, 256), (256 * 256, 64), (512 * 512, 16), (768 * 768, 8), (1024 * 1024, 4))
_UNKNOWN_SIZE = (1024, 1024)


@dataclass(frozen=True, kw_only=True)
class DrawingRequest:
    """Everything that decides the images but their number.

    Attributes:
        prompts: how class names become prompts.
        generator: the pipeline.
        scheduler: class name of diffusers; None keeps the pipeline's own.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        negative_prompt: empty for none.
        size: (height, width); None is the pipeline's own.
        dtype: float32, float16 or bfloat16.
        safety_checker: kept where the pipeline has one.
        batch: images drawn at once, and images of a shard.
        device: cpu or cuda.
        asked: what the key is made of, as plain values.
    """

    prompts: PromptRecipe
    generator: Generator
    scheduler: str | None
    steps: int
    guidance: float
    negative_prompt: str
    size: tuple[int, int] | None
    dtype: str
    safety_checker: bool
    batch: int
    device: str
    asked: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> str:
        """SHA-256 of what was asked."""
        return sha256_json(self.asked)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt counts."""
        return self.guidance > 1.0


def resolve_request(prompts: PromptRecipe, settings: GeneratorSettings, *, cache: Path) -> DrawingRequest:
    """Settle a drawing. Imports torch for `device="auto"` and `"cuda"` only, and never diffusers for a local
    folder.

    Args:
        prompts: of the recipe.
        settings: of the recipe.
        cache: folder where hashes of large files are remembered.

    Raises:
        BadInputError: the generator cannot be used.
        BadOptionError: settings that are not allowed, or a device that is not here.
    """
    _check(settings)
    generator = resolve_generator(settings.source, revision=settings.revision)
    device = resolve_device(settings.device)
    dtype = settings.dtype if settings.dtype != "auto" else "float32" if device == "cpu" else "float16"
    size, own_size = settings.size or generator.defaults.size, generator.folder.own_size()
    if size == own_size and generator.defaults.size is None:
        size = None  # typed or not, it is the pipeline's own: the same images under the same key
    batch = settings.batch or _default_batch(size or own_size or _UNKNOWN_SIZE, device=device)
    steps = settings.steps if settings.steps is not None else generator.defaults.steps
    guidance = float(settings.guidance if settings.guidance is not None else generator.defaults.guidance)
    if settings.negative_prompt and guidance <= 1.0:
        raise BadOptionError(
            (
                f"--gen-negative has no effect without guidance, and {generator.name} draws with "
                f"{guidance:g}, which turns it off"
            ),
            hint="a --gen-guidance above 1, or leave --gen-negative out",
        )
    own_scheduler, scheduler_config = generator.folder.scheduler()
    safety_checker = settings.safety_checker and SAFETY_CHECKER in generator.folder.components
    files = generator.folder.loaded_files(
        without=frozenset() if safety_checker else frozenset({SAFETY_CHECKER})
    )
    try:
        hashes = file_hashes(files.values(), memory=cache / _HASHES_FILE)
    except OSError as error:
        raise BadInputError(
            f"generator file {error.filename} cannot be read: {error.strerror or error}",
            hint="check the folder",
        ) from error
    asked = {
        "format": _FORMAT,
        "prompts": prompts,
        "phrases": {"adjectives": ADJECTIVES, "template": DEFAULT_TEMPLATE},
        "pipeline": generator.folder.class_name,
        "files": {name: hashes[path] for name, path in files.items()},
        "scheduler": {"class": settings.scheduler or own_scheduler, "config": scheduler_config},
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": settings.negative_prompt,
        "size": size,
        "dtype": dtype,
        "safety_checker": safety_checker,
        "device": device,
        "batch": batch,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    return DrawingRequest(
        prompts=prompts,
        generator=generator,
        scheduler=settings.scheduler,
        steps=steps,
        guidance=guidance,
        negative_prompt=settings.negative_prompt,
        size=size,
        dtype=dtype,
        safety_checker=safety_checker,
        batch=batch,
        device=device,
        asked=asked,
    )


def _check(settings: GeneratorSettings) -> None:
    if settings.steps is not None and settings.steps < 1:
        raise BadOptionError(f"--gen-steps is {settings.steps}, allowed 1 or more", hint="--gen-steps 20")
    if settings.batch is not None and settings.batch < 1:
        raise BadOptionError(f"--gen-batch is {settings.batch}, allowed 1 or more", hint="--gen-batch 16")
    if settings.size is not None and min(settings.size) < 1:
        raise BadOptionError(
            f"--gen-size is {settings.size}, allowed 1 or more pixels each way", hint="--gen-size 512x512"
        )


def _default_batch(size: tuple[int, int], *, device: str) -> int:
    pixels = size[0] * size[1]
    return next(
        (batch for most, batch in (_CPU_BATCHES if device == "cpu" else _GPU_BATCHES) if pixels <= most), 1
    )
