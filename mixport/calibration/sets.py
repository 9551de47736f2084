"""The cached calibration sets: what is there, whether it is whole, what may go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mixport.calibration.generate import KIND
from mixport.errors import BadInputError
from mixport.store import Entry, Store


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """One line of `mixport calib list`.

    Attributes:
        key: recipe key.
        path: the entry's folder.
        method: images, noise ...; empty where the entry cannot be read.
        source: of real images.
        count: images in it.
        size: (height, width).
        seed: of the recipe.
        content_sha256: of the pixels.
        bytes: on disk.
        created: UTC; None where the entry cannot be read.
    """

    key: str
    path: Path
    method: str
    source: str | None
    count: int
    size: tuple[int, int]
    seed: int
    content_sha256: str
    bytes: int
    created: datetime | None


def list_sets(store: Store) -> list[SetSummary]:
    """Every cached set, newest first; unreadable ones last."""
    sets = [_summary(entry) for entry in store.entries(KIND)]
    return sorted(sets, key=_age_order)


def find_set(store: Store, key: str) -> SetSummary:
    """The set whose key starts with `key`. Raises BadInputError where none or several do."""
    found = [one for one in list_sets(store) if key and one.key.startswith(key)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} calibration sets start" if found else "no calibration set starts"
    raise BadInputError(f"{what} with {key!r} in {store.root}", hint="mixport calib list")


def verify_sets(store: Store, *, keys: Collection[str] | None = None) -> dict[str, list[str]]:
    """Problems by key, empty lists for whole sets; of every set, or of some. Changes nothing."""
    return {one.key: store.verify(KIND, one.key) for one in list_sets(store) if keys is None or one.key in keys}


def select_for_pruning(
    sets: Sequence[SetSummary],
    *,
    now: datetime,
    keys: Collection[str] = (),
    older_than: timedelta | None = None,
    keep_bytes: int | None = None,
) -> list[SetSummary]:
    """Sets to delete, oldest first: those named, those older, and then the oldest until the rest fits `keep_bytes`.

    Unreadable sets count as oldest. The caller asks, and removes with `store.remove("calibration", key)`.
    """
    oldest_first = sorted(sets, key=_age_order, reverse=True)
    chosen = {one.key for one in oldest_first if one.key in keys or (older_than is not None and _older(one, now - older_than))}
    if keep_bytes is not None:
        kept = sum(one.bytes for one in oldest_first if one.key not in chosen)
        for one in oldest_first:
            if kept <= keep_bytes:
                break
            if one.key not in chosen:
                chosen.add(one.key)
                kept -= one.bytes
    return [one for one in oldest_first if one.key in chosen]


def _older(one: SetSummary, bound: datetime) -> bool:
    return one.created is None or one.created < bound


def _age_order(one: SetSummary) -> tuple[float, str]:
    return (-one.created.timestamp() if one.created is not None else float("inf"), one.key)


def _summary(entry: Entry) -> SetSummary:
    metadata = entry.metadata
    height, width = metadata.get("size", (0, 0))
    return SetSummary(
        key=entry.key,
        path=entry.path,
        method=metadata.get("method", ""),
        source=metadata.get("source"),
        count=metadata.get("count", 0),
        size=(height, width),
        seed=metadata.get("seed", 0),
        content_sha256=metadata.get("content_sha256", ""),
        bytes=entry.bytes,
        created=entry.created,
    )
