"""The folders of drawn images in a cache, as they describe themselves; and how one is deleted while others
may draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from mixport.calibration.drawn_images.drawn_folder import DRAWN_KIND
from mixport.calibration.drawn_images.recipe_file import RECIPE_FILE
from mixport.calibration.drawn_images.shards import lock_file, read_manifest, shard_files
from mixport.records.errors import StoreError
from mixport.storage.sealed_json import unseal
from mixport.storage.store import Store

_MAX_RECIPE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class DrawnFolder:
    """What is known of the images that one drawing request gave so far.

    Attributes:
        key: of the request.
        path: the folder.
        generator: as asked for; None where the folder cannot be read.
        strategy: of the prompts; empty where the folder cannot be read.
        seed: of the prompts.
        count: images, by the names of files.
        content_sha256: of the pixels when the last run was done; empty before.
        bytes: on disk.
        created: UTC; None where the folder cannot be read.
    """

    key: str
    path: Path
    generator: str | None
    strategy: str
    seed: int
    count: int
    content_sha256: str
    bytes: int
    created: datetime | None


def list_drawn(store: Store) -> list[DrawnFolder]:
    """Every folder of drawn images, by key."""
    return [_read(entry.key, entry.path) for entry in store.entries(DRAWN_KIND)]


def remove_drawn(store: Store, key: str) -> bool:
    """Delete the drawn images of a request; they disappear in one step.

    Returns:
        False, and nothing is deleted, where another process draws there now.

    Raises:
        StoreError: the cache cannot be written.
    """
    lock = FileLock(lock_file(store.root / DRAWN_KIND / key))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:
        raise StoreError(
            f"cache {store.root} cannot be written: {error.strerror or error}", hint="check its permissions"
        ) from error
    try:
        store.remove(DRAWN_KIND, key)
    finally:
        lock.release()
    return True


def _read(key: str, path: Path) -> DrawnFolder:
    recipe = read_recipe(path / RECIPE_FILE)
    manifest, _ = read_manifest(path)
    prompts = _mapping(_mapping(recipe.get("asked")).get("prompts"))
    seed = prompts.get("seed", 0)
    return DrawnFolder(
        key=key,
        path=path,
        generator=str(recipe["generator"]) if "generator" in recipe else None,
        strategy=str(prompts.get("strategy", "")),
        seed=seed if isinstance(seed, int) else 0,
        count=sum(count for _, count in shard_files(path)),
        content_sha256=manifest.content_sha256 if manifest is not None else "",
        bytes=sum(size for one in path.glob("*") if (size := _size(one)) is not None),
        created=_time(recipe.get("created")),
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """Everything that was asked, as plain values; empty where it cannot be read or is damaged."""
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            return {}
        return unseal(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _time(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _size(path: Path) -> int | None:
    """Bytes of a file; None where another process has just moved it."""
    try:
        return path.stat().st_size
    except OSError:
        return None
