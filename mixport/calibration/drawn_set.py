"""From a recipe with prompts to a calibration set: images of the folder that was drawn, filtered, at the
model's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from mixport.calibration.drawn_images.drawn_folder import draw_into, images_at_hand, images_to_draw
from mixport.calibration.entries import (
    IMAGES_FILE,
    KIND,
    PROMPTS_FILE,
    asked,
    content_sha256,
    describe,
    read_prompts,
    read_set,
    write_prompts,
)
from mixport.calibration.filters import filter_images, pool_size
from mixport.calibration.generator.request import DrawingRequest, resolve_request
from mixport.calibration.generator.resolve import is_remote
from mixport.calibration.prompts.prompts import Prompt, check_prompts
from mixport.calibration.recipe import CalibrationRecipe, FilterSettings, GeneratorSettings, PromptRecipe
from mixport.records.calibration_set import CalibrationSet, ImageScores
from mixport.records.errors import InvariantError
from mixport.records.fingerprint import sha256_json
from mixport.records.progress import Progress
from mixport.storage.images import fit, write_npy_rows
from mixport.storage.store import Store


def drawn_set(
    recipe: CalibrationRecipe, *, store: Store, progress: Progress, scores: ImageScores | None
) -> CalibrationSet:
    """The set of a recipe with prompts and a generator, drawn where it is not in the cache.

    Raises:
        BadInputError: the generator cannot be used, or gives broken images.
        BadOptionError: the recipe is not allowed.
        StoreError: the cache cannot be written.
    """
    prompt_recipe, settings = _parts(recipe)
    check_prompts(prompt_recipe)
    if recipe.filters != FilterSettings():
        return _filtered_set(recipe, store=store, progress=progress, scores=scores)
    request = resolve_request(prompt_recipe, settings, cache=store.root)
    key = _set_key(recipe, request)
    if store.get(KIND, key) is None:
        with draw_into(request, count=recipe.images, store=store, progress=progress) as drawn_folder:
            kept = dict(enumerate(drawn_folder.prompts[: recipe.images]))
            # The size that was drawn is known only now: None in the request is the pipeline's own.
            height, width = drawn_folder.shards.read(0).images.shape[1:3]
            details = {**_details(recipe, request), "size": [height, width]}
            blackened = drawn_folder.blackened(recipe.images)
            rows = (
                fit(Image.fromarray(image), preprocessing=recipe.preprocessing)
                for image in drawn_folder.images(recipe.images)
            )
            metadata = _metadata(recipe, drawn=request.key, details=details, blackened=blackened)
            _write_entry(store, key, rows, kept, recipe=recipe, metadata=metadata)
    return dataclasses.replace(read_set(store, key), generator=settings.source)


def drawn_at_hand(recipe: CalibrationRecipe, *, store: Store) -> int | None:
    """How many images of a recipe are in the cache; None where only the hub, or the filters, could say. Opens
    no pipeline.

    Raises:
        BadInputError: the generator cannot be used.
        BadOptionError: the recipe is not allowed.
    """
    prompt_recipe, settings = _parts(recipe)
    if is_remote(settings.source) or recipe.filters != FilterSettings():
        return None
    request = resolve_request(prompt_recipe, settings, cache=store.root)
    if (store.root / KIND / _set_key(recipe, request)).is_dir():
        return recipe.images
    return min(recipe.images, images_at_hand(request, store=store))


def images_ahead(recipe: CalibrationRecipe, request: DrawingRequest, *, store: Store) -> int:
    """How many images will be drawn for a recipe, in whole batches; 0 where everything is in the cache. Looks
    at names of files only.
    """
    pool = dataclasses.replace(
        recipe, images=pool_size(recipe.filters, images=recipe.images), filters=FilterSettings()
    )
    if (store.root / KIND / _set_key(pool, request)).is_dir():
        return 0
    return images_to_draw(request, count=pool.images, store=store)


def _filtered_set(
    recipe: CalibrationRecipe, *, store: Store, progress: Progress, scores: ImageScores | None
) -> CalibrationSet:
    """Draw more, keep the best. The pool is a set of its own in the cache.

    Scores are computed at each call, since nothing but their values says which model they come from; the key
    holds the choice.
    """
    if scores is None:
        raise InvariantError("a recipe with filters came without the scores of a model")
    drawn = pool_size(recipe.filters, images=recipe.images)
    pool_recipe = dataclasses.replace(recipe, images=drawn, filters=FilterSettings())
    pool = drawn_set(pool_recipe, store=store, progress=progress, scores=None)
    images = pool.open_images()
    chosen, record = filter_images(images, filters=recipe.filters, images=recipe.images, scores=scores)
    key = sha256_json({**asked(recipe), "pool": pool.recipe_key, "filters": recipe.filters, "chosen": chosen})
    if store.get(KIND, key) is None:
        pool_metadata = store.metadata(KIND, pool.recipe_key)
        pool_prompts = read_prompts(pool.images_path.parent / PROMPTS_FILE)
        black = set(pool_metadata["blackened"])
        blackened = [place for place, position in enumerate(chosen) if position in black]
        metadata = {
            **_metadata(
                recipe,
                drawn=pool_metadata["drawn"],
                details=pool_metadata["generator_details"],
                blackened=blackened,
            ),
            "pool": pool.recipe_key,
            "filters": {**dataclasses.asdict(recipe.filters), **dataclasses.asdict(record)},
        }
        kept = {position: pool_prompts[position] for position in chosen}
        _write_entry(
            store, key, (images[position] for position in chosen), kept, recipe=recipe, metadata=metadata
        )
    return dataclasses.replace(read_set(store, key), generator=pool.generator)


def _write_entry(
    store: Store,
    key: str,
    rows: Iterable[NDArray[np.uint8]],
    kept: Mapping[int, Prompt],
    *,
    recipe: CalibrationRecipe,
    metadata: dict[str, Any],
) -> None:
    with store.create(KIND, key, metadata=metadata) as folder:
        write_npy_rows(folder / IMAGES_FILE, iter(rows), shape=(recipe.images, *recipe.preprocessing.size, 3))
        write_prompts(folder / PROMPTS_FILE, kept)
        metadata["content_sha256"] = content_sha256(folder / IMAGES_FILE)


def _parts(recipe: CalibrationRecipe) -> tuple[PromptRecipe, GeneratorSettings]:
    if recipe.prompts is None or recipe.generator is None:
        raise InvariantError(f"a {recipe.method} recipe came without prompts or generator")
    return recipe.prompts, recipe.generator


def _set_key(recipe: CalibrationRecipe, request: DrawingRequest) -> str:
    return sha256_json({**asked(recipe), "drawn": request.key, "decoder": f"pillow {PIL.__version__}"})


def _metadata(
    recipe: CalibrationRecipe, *, drawn: str, details: Mapping[str, Any], blackened: Sequence[int]
) -> dict[str, Any]:
    prompts, settings = _parts(recipe)
    found = {"blackened": len(blackened)} if blackened or details["safety_checker"] else {}
    return {
        **describe(recipe, count=recipe.images),
        "generator": settings.source,
        "generator_details": {**details, **found},
        # Positions in the set: those that filters keep are counted again.
        "blackened": list(blackened),
        "drawn": drawn,
        "prompts": {
            "strategy": prompts.strategy,
            "classes": len(prompts.class_names),
            "classes_per_prompt": prompts.classes_per_prompt if prompts.strategy == "mixup" else 1,
            "template": prompts.template,
            "pairing": prompts.pairing,
            "label_text": prompts.label_text,
        },
        "filters": None,
    }


def _details(recipe: CalibrationRecipe, request: DrawingRequest) -> dict[str, Any]:
    settings = _parts(recipe)[1]
    return {
        "source": request.generator.name,
        "pipeline": request.generator.folder.class_name,
        "weights_sha256": sha256_json(request.asked["files"]),
        "revision": settings.revision,
        "scheduler": request.asked["scheduler"]["class"],
        "steps": request.steps,
        "guidance": request.guidance,
        "negative_prompt": request.negative_prompt,
        "size": request.size,
        "dtype": request.dtype,
        "device": request.device,
        "safety_checker": request.safety_checker,
    }
