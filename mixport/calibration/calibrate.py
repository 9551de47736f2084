"""From a recipe to images on disk, through the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL

from mixport.calibration import noise
from mixport.calibration.drawn_set import drawn_at_hand, drawn_set
from mixport.calibration.entries import IMAGES_FILE, KIND, asked, content_sha256, describe, read_set
from mixport.calibration.recipe import DRAWN, CalibrationRecipe
from mixport.records.calibration_set import CalibrationSet, ImageScores
from mixport.records.errors import InvariantError
from mixport.records.fingerprint import sha256_file, sha256_json
from mixport.records.progress import Progress
from mixport.storage.image_files import DECODING
from mixport.storage.images import ImageSource, Pixels, choose_images, write_images, write_npy_rows
from mixport.storage.store import Entry, Store


def calibrate(
    recipe: CalibrationRecipe, *, store: Store, progress: Progress, scores: ImageScores | None = None
) -> CalibrationSet:
    """The images of a recipe, from the cache where they are there already and whole.

    The cache key covers the recipe and the content of the source, not its place: a moved folder is found
    again. A damaged entry is set aside and built again (`store.damaged` tells).

    Args:
        recipe: what is asked.
        store: the cache.
        progress: shows bars.
        scores: of the float model; needed where `recipe.filters` drops images.

    Raises:
        BadInputError: the source is missing, empty, damaged or of the wrong kind; or the generator cannot be
            used.
        BadOptionError: a prompt recipe, filters, or settings of the generator that are not allowed.
        StoreError: the cache cannot be written.
    """
    if recipe.method in DRAWN:
        return drawn_set(recipe, store=store, progress=progress, scores=scores)
    if recipe.method == "noise":
        return _noise_set(recipe, store=store, progress=progress)
    if recipe.method == "images" and recipe.source is not None:
        return _image_set(recipe, Path(recipe.source), store=store, progress=progress)
    raise InvariantError(f"no calibration method {recipe.method!r} with source {recipe.source!r}")


def cached_images(recipe: CalibrationRecipe, *, store: Store) -> int | None:
    """How many images of a recipe are in the cache already; None where that shows only when they are made.

    Raises:
        BadInputError: the generator cannot be used.
        BadOptionError: a prompt recipe or settings of the generator that are not allowed.
    """
    if recipe.method in DRAWN:
        return drawn_at_hand(recipe, store=store)
    if recipe.method == "noise":
        return min(
            recipe.images,
            max(
                (int(entry.metadata["count"]) for entry in _relatives(store, _noise_folder(recipe))),
                default=0,
            ),
        )
    return None


def _image_set(recipe: CalibrationRecipe, path: Path, *, store: Store, progress: Progress) -> CalibrationSet:
    source = choose_images(path, limit=recipe.images, seed=recipe.seed)
    wanted = {**asked(recipe), "source": _source_fingerprint(source), "decoder": f"pillow {PIL.__version__}"}
    key = sha256_json(wanted)
    count = len(source.chosen)
    if store.get(KIND, key) is None:
        metadata = describe(recipe, count=count)
        with (
            store.create(KIND, key, metadata=metadata) as folder,
            progress.track("calibration images", total=count) as advance,
        ):
            write_images(source, folder / IMAGES_FILE, preprocessing=recipe.preprocessing, on_image=advance)
            metadata["content_sha256"] = content_sha256(folder / IMAGES_FILE)
    return read_set(store, key)


def _noise_set(recipe: CalibrationRecipe, *, store: Store, progress: Progress) -> CalibrationSet:
    drawn_folder = _noise_folder(recipe)
    key = sha256_json({**asked(recipe), "preprocessing": None, "source": drawn_folder})
    if store.get(KIND, key) is None:
        metadata = {**describe(recipe, count=recipe.images), "family": drawn_folder}
        ready = _noise_of_folder(store, drawn_folder)
        shape = (recipe.images, *recipe.preprocessing.size, 3)
        with (
            store.create(KIND, key, metadata=metadata) as folder,
            progress.track("calibration noise", total=recipe.images) as advance,
        ):
            write_npy_rows(folder / IMAGES_FILE, _noise_rows(recipe, ready), shape=shape, on_row=advance)
            metadata["content_sha256"] = content_sha256(folder / IMAGES_FILE)
    return read_set(store, key)


def _noise_rows(recipe: CalibrationRecipe, ready: Pixels | None) -> Iterator[Pixels]:
    for index in range(recipe.images):
        if ready is not None and index < len(ready):
            yield ready[index]
        else:
            yield noise.noise_image(seed=recipe.seed, index=index, size=recipe.preprocessing.size)


def _noise_folder(recipe: CalibrationRecipe) -> str:
    return sha256_json({"version": noise.VERSION, "seed": recipe.seed, "size": recipe.preprocessing.size})


def _relatives(store: Store, drawn_folder: str) -> list[Entry]:
    return [entry for entry in store.entries(KIND) if entry.metadata.get("family") == drawn_folder]


def _noise_of_folder(store: Store, drawn_folder: str) -> Pixels | None:
    """Images of the same seed and size that another count left in the cache: they are the first ones of this
    set too.
    """

    def count(entry: Entry) -> int:
        return int(entry.metadata["count"])

    for entry in sorted(_relatives(store, drawn_folder), key=count, reverse=True):
        folder = store.get(KIND, entry.key)
        if folder is not None:
            return np.load(folder / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
    return None


def _source_fingerprint(source: ImageSource) -> str:
    if source.files is None:
        return sha256_file(source.path)
    # Names and sizes of all files decide which ones are chosen; the content of the others has no influence.
    listing = [[path.relative_to(source.path).as_posix(), path.stat().st_size] for path in source.files]
    return sha256_json(
        {
            "version": DECODING,
            "files": listing,
            "chosen": [sha256_file(source.files[position]) for position in source.chosen],
        }
    )
