"""Whether a folder of drawn images is whole: every shard, the manifest, and what was asked."""

from __future__ import annotations

import json
from pathlib import Path

from mixport.calibration.family import RECIPE_FILE, SIMILARITY_FILE, read_similarity
from mixport.fingerprint import sha256_json
from mixport.shards import verify_folder

_MAX_RECIPE_BYTES = 64 << 20


def verify_family(path: Path) -> list[str]:
    """What is wrong with the folder of a drawing request, one line each; empty where nothing is. Changes nothing."""
    recipe = _recipe_problem(path)
    _, similarity = read_similarity(path)
    problems = [f"{name}: {problem}" for name, problem in ((RECIPE_FILE, recipe), (SIMILARITY_FILE, similarity)) if problem is not None]
    return problems + verify_folder(path)


def _recipe_problem(path: Path) -> str | None:
    file = path / RECIPE_FILE
    try:
        if (size := file.stat().st_size) > _MAX_RECIPE_BYTES:
            return f"{size} bytes, allowed {_MAX_RECIPE_BYTES}"
        recipe = json.loads(file.read_bytes())
        return None if sha256_json(recipe["asked"]) == path.name == recipe["key"] else "does not fit the key"
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"cannot be read: {(str(error).splitlines() or [''])[0]}"
