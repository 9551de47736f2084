"""All that the cache knows of one set: what was asked, what drew it, what the filters did, and the prompt of
each image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mixport.calibration.drawn_images.drawn_folder import DRAWN_KIND
from mixport.calibration.drawn_images.folders import read_recipe
from mixport.calibration.drawn_images.recipe_file import RECIPE_FILE
from mixport.calibration.drawn_images.shards import read_manifest
from mixport.calibration.entries import KIND, prompts_of
from mixport.calibration.sets import SetSummary
from mixport.records.errors import StoreError
from mixport.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class SetDetails:
    """What stands behind a set; None and empty where it was not drawn.

    Attributes:
        generator: every setting of the generator as it was used, and how many images its safety checker
            blackened.
        prompts: how the prompts were made.
        filters: shares asked for, and how many images each filter dropped; None without filters.
        texts: the prompt of each image, in their order.
    """

    generator: Mapping[str, Any] | None = None
    prompts: Mapping[str, Any] | None = None
    filters: Mapping[str, Any] | None = None
    texts: Sequence[str] = ()


def set_details(store: Store, key: str) -> SetDetails:
    """Details of a set that is in the cache.

    Raises:
        StoreError: the entry, or its prompts, cannot be read.
    """
    metadata = store.metadata(KIND, key)
    return SetDetails(
        generator=_mapping(metadata.get("generator_details")) or None,
        prompts=_mapping(metadata.get("prompts")) or None,
        filters=_mapping(metadata.get("filters")) or None,
        texts=prompts_of(store.root / KIND / key) or (),
    )


def details_of(store: Store, one: SetSummary) -> SetDetails:
    """Details of a listed set or of drawn images; none where they cannot be read, which `verify_sets`
    explains.
    """
    if one.kind == DRAWN_KIND:
        return _drawn_details(one)
    try:
        return set_details(store, one.key)
    except StoreError:
        return SetDetails()


def sheet_title(one: SetSummary, details: SetDetails) -> tuple[str, ...]:
    """The lines above a contact sheet: what the images are, what drew them, and how to find them."""
    what = f"{one.count} calibration images: {one.method}"
    prompts = details.prompts or {}
    if prompts.get("strategy") == "mixup":
        what += f" of {prompts.get('classes_per_prompt')} classes"
    drawn = details.generator or {}
    shown = {"steps": drawn.get("steps"), "guidance": drawn.get("guidance"), "dtype": drawn.get("dtype")}
    settings = [str(value) for value in (drawn.get("pipeline"), drawn.get("scheduler")) if value]
    settings += [f"{name} {value}" for name, value in shown.items() if value is not None]
    generator = [f"generator {one.generator}: {', '.join(settings)}"] if one.generator is not None else []
    return (what, *generator, f"seed {one.seed}, recipe {one.key}")


def _drawn_details(one: SetSummary) -> SetDetails:
    asked = _mapping(read_recipe(one.path / RECIPE_FILE).get("asked"))
    manifest, _ = read_manifest(one.path)
    notes = (
        [note for shard in manifest.shards for note in _list(shard.note.get("prompts"))]
        if manifest is not None
        else []
    )
    generator = {
        name: value
        for name, value in asked.items()
        if name not in ("prompts", "phrases", "files", "format", "scheduler")
    }
    scheduler = _mapping(asked.get("scheduler"))
    generator |= {
        f"scheduler_{name}" if name != "class" else "scheduler": value for name, value in scheduler.items()
    }
    blackened = (
        sum(len(_list(shard.note.get("blackened"))) for shard in manifest.shards)
        if manifest is not None
        else 0
    )
    if blackened or generator.get("safety_checker"):
        generator["blackened"] = blackened
    prompts = _mapping(asked.get("prompts"))
    # A thousand names are no summary.
    shown = {name: value for name, value in prompts.items() if name not in ("class_names", "glosses")}
    return SetDetails(
        generator=generator or None,
        prompts={**shown, "classes": len(_list(prompts.get("class_names")))} if prompts else None,
        texts=tuple(str(_mapping(note).get("text", "")) for note in notes),
    )


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
