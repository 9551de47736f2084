"""recipe.json of a folder of drawn images: everything that was asked, for people and for `verify`.

The folder's name is the SHA-256 of what was asked; the SHA-256 of the whole record stands in the record.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from mixport.calibration.drawn_images.shards import MANIFEST_FILE, ShardFolder, shard_files
from mixport.calibration.generator.request import DrawingRequest
from mixport.records.fingerprint import canonical_json, sha256_json
from mixport.storage.sealed_json import seal, unseal

RECIPE_FILE = "recipe.json"

_MAX_BYTES = 64 << 20


def write_recipe(shards: ShardFolder, request: DrawingRequest) -> None:
    """Say what was asked, where that is not said yet; a file that says something else is set aside. Raises
    StoreError.
    """
    path = shards.path / RECIPE_FILE
    if path.is_file():
        problem = recipe_problem(shards.path)
        if problem is None:
            return
        shards.set_aside(RECIPE_FILE, problem)
    recipe = {
        "schema_version": 2,
        "key": request.key,
        "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "generator": request.generator.name,
        "asked": json.loads(canonical_json(request.asked)),
    }
    shards.write_file(RECIPE_FILE, seal(recipe))


def recipe_problem(folder: Path) -> str | None:
    """What is wrong with the recipe of a folder; None where it is whole, or where nothing was drawn yet that
    it could describe.
    """
    file = folder / RECIPE_FILE
    try:
        if (size := file.stat().st_size) > _MAX_BYTES:
            return f"{size} bytes, allowed {_MAX_BYTES}"
        recipe = unseal(file.read_bytes())
        return (
            None if sha256_json(recipe["asked"]) == folder.name == recipe["key"] else "does not fit the key"
        )
    except FileNotFoundError:
        return "missing" if shard_files(folder) or (folder / MANIFEST_FILE).exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read: {(str(error).splitlines() or [''])[0]}"
