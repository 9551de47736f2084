"""The cached calibration sets: what is there, whether it is whole, what may go.

Images that a generator drew lie in folders of their own, which grow and serve sets of any count: see
`drawn_folder`. Both are listed here, told apart by their kind.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mixport.calibration.drawn_images.check import verify_drawn_folder
from mixport.calibration.drawn_images.drawn_folder import DRAWN_KIND
from mixport.calibration.drawn_images.folders import DrawnFolder, list_drawn, remove_drawn
from mixport.calibration.entries import KIND
from mixport.records.errors import BadInputError
from mixport.storage.store import Entry, Store


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
        generator: that drew the images; None for others.
        kind: calibration for a set, drawn for images that further sets can use.
        drawn: key of the drawn images that the set was made from.
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
    generator: str | None = None
    kind: str = KIND
    drawn: str | None = None


def list_sets(store: Store) -> list[SetSummary]:
    """Every cached set, newest first; unreadable ones last."""
    sets = [_summary(entry) for entry in store.entries(KIND)]
    return sorted(sets, key=_age_order)


def list_drawn_folders(store: Store) -> list[SetSummary]:
    """Every folder of drawn images, newest first; unreadable ones last."""
    return sorted((_drawn_folder(one) for one in list_drawn(store)), key=_age_order)


def find_set(store: Store, key: str) -> SetSummary:
    """The set, or else the drawn images, whose key starts with `key`. Raises BadInputError where none or
    several do.
    """
    found = [
        one for one in (*list_sets(store), *list_drawn_folders(store)) if key and one.key.startswith(key)
    ]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} calibration sets start" if found else "no calibration set starts"
    raise BadInputError(f"{what} with {key!r} in {store.root}", hint="mixport calib list")


def verify_sets(store: Store, *, keys: Collection[str] | None = None) -> dict[str, list[str]]:
    """Problems by key, empty lists for whole sets; of every set and all drawn images, or of some. Changes
    nothing.

    With a set's key, the images that it was made from are looked at too. Drawn images are named `drawn/KEY`.
    """
    sets = [one for one in list_sets(store) if keys is None or one.key in keys]
    sources = {one.drawn for one in sets}
    drawn_folders = [
        one for one in list_drawn_folders(store) if keys is None or one.key in keys or one.key in sources
    ]
    problems = {one.key: store.verify(KIND, one.key) for one in sets}
    return problems | {f"{DRAWN_KIND}/{one.key}": verify_drawn_folder(one.path) for one in drawn_folders}


def stage_results(store: Store) -> list[Entry]:
    """What builds left in the cache to go on from: every entry that holds no calibration images."""
    return [entry for entry in store.entries() if entry.kind not in (KIND, DRAWN_KIND)]


def prunable(
    store: Store,
    *,
    now: datetime,
    keys: Collection[str] = (),
    stages: bool = False,
    older_than: timedelta | None = None,
    keep_bytes: int | None = None,
) -> list[SetSummary | Entry]:
    """What `mixport calib prune` would delete: sets and drawn images as in `select_for_pruning`, and stage
    results.

    Raises:
        BadInputError: no set, or several, start with one of `keys`.
    """
    chosen = select_for_pruning(
        [*list_sets(store), *list_drawn_folders(store)],
        now=now,
        keys=[find_set(store, key).key for key in keys],
        older_than=older_than,
        keep_bytes=keep_bytes,
    )
    return [*chosen, *(stage_results(store) if stages else [])]


def select_for_pruning(
    sets: Sequence[SetSummary],
    *,
    now: datetime,
    keys: Collection[str] = (),
    older_than: timedelta | None = None,
    keep_bytes: int | None = None,
) -> list[SetSummary]:
    """Sets to delete, oldest first: those named, those older, and then the oldest until the rest fits
    `keep_bytes`.

    Unreadable sets count as oldest. The caller asks, and removes.
    """
    oldest_first = sorted(sets, key=_age_order, reverse=True)
    chosen = {
        one.key
        for one in oldest_first
        if one.key in keys or (older_than is not None and _older(one, now - older_than))
    }
    if keep_bytes is not None:
        kept = sum(one.bytes for one in oldest_first if one.key not in chosen)
        for one in oldest_first:
            if kept <= keep_bytes:
                break
            if one.key not in chosen:
                chosen.add(one.key)
                kept -= one.bytes
    return [one for one in oldest_first if one.key in chosen]


def remove(store: Store, one: SetSummary | Entry) -> bool:
    """Delete what `prunable` named. False, and nothing is deleted, where another process is at work on it.
    Raises StoreError.
    """
    if one.kind == DRAWN_KIND:
        return remove_drawn(store, one.key)
    store.remove(one.kind, one.key)
    return True


def _older(one: SetSummary, bound: datetime) -> bool:
    return one.created is None or one.created < bound


def _age_order(one: SetSummary) -> tuple[float, str]:
    return (-one.created.timestamp() if one.created is not None else float("inf"), one.key)


def _summary(entry: Entry) -> SetSummary:
    metadata = entry.metadata
    match metadata.get("size"):
        case [int(height), int(width)]:
            pass
        case _:  # not what we wrote
            height, width = 0, 0
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
        generator=metadata.get("generator"),
        drawn=metadata.get("drawn"),
    )


def _drawn_folder(folder: DrawnFolder) -> SetSummary:
    return SetSummary(
        key=folder.key,
        path=folder.path,
        method=folder.strategy,
        source=None,
        count=folder.count,
        size=(0, 0),
        seed=folder.seed,
        content_sha256=folder.content_sha256,
        bytes=folder.bytes,
        created=folder.created,
        generator=folder.generator,
        kind=DRAWN_KIND,
    )
