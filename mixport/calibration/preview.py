"""What a recipe will give, told before anything is drawn or fetched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mixport.calibration.calibrate import cached_images
from mixport.calibration.drawn_set import images_ahead
from mixport.calibration.filters import pool_size
from mixport.calibration.generator.request import resolve_request
from mixport.calibration.generator.resolve import is_remote
from mixport.calibration.prompts.prompts import check_prompts
from mixport.calibration.recipe import CalibrationRecipe, GeneratorSettings
from mixport.storage.images import choose_images
from mixport.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The set of a recipe as far as it is known beforehand.

    Attributes:
        images: how many it will have.
        cached: how many of them need not be made; None for real images, and where only the hub or a filter
            could say.
        pool: how many it is chosen from; more than `images` where filters drop some, 0 for sets that are not
            drawn.
        batch: how many are drawn at once, and kept; None where only the hub could say.
        to_draw: how many will be drawn, in whole batches; None where only the hub could say.
        generator: settings with every default filled in; as asked where only the hub could say; None for sets
            that are not drawn.
    """

    images: int
    cached: int | None = None
    pool: int = 0
    batch: int | None = None
    to_draw: int | None = None
    generator: GeneratorSettings | None = None


def preview(recipe: CalibrationRecipe, *, store: Store) -> Preview:
    """Look ahead. Opens no pipeline and asks no hub; reads the files of a local generator where their hashes
    are not known yet.

    Raises:
        BadInputError: the source of real images, or the generator, cannot be used.
        BadOptionError: the prompts are not allowed, or the device is not here.
    """
    if recipe.source is not None:
        return Preview(
            images=len(choose_images(Path(recipe.source), limit=recipe.images, seed=recipe.seed).chosen)
        )
    if recipe.prompts is None or recipe.generator is None:
        return Preview(images=recipe.images, cached=cached_images(recipe, store=store))
    check_prompts(recipe.prompts)
    pool = pool_size(recipe.filters, images=recipe.images)
    if is_remote(recipe.generator.source):
        return Preview(
            images=recipe.images, pool=pool, batch=recipe.generator.batch, generator=recipe.generator
        )
    request = resolve_request(recipe.prompts, recipe.generator, cache=store.root)
    settled = dataclasses.replace(
        recipe.generator,
        scheduler=request.asked["scheduler"]["class"],
        steps=request.steps,
        guidance=request.guidance,
        size=request.size or request.generator.folder.own_size(),
        dtype=request.dtype,
        safety_checker=request.safety_checker,
        batch=request.batch,
        device=request.device,
    )
    return Preview(
        images=recipe.images,
        cached=cached_images(recipe, store=store),
        pool=pool,
        batch=request.batch,
        to_draw=images_ahead(recipe, request, store=store),
        generator=settled,
    )
