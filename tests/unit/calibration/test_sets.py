from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mixport.calibration.calibrate import calibrate
from mixport.calibration.recipe import parse_calibration
from mixport.calibration.sets import SetSummary, find_set, list_sets, select_for_pruning, verify_sets
from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadInputError
from mixport.records.progress import SilentProgress
from mixport.storage.sealed_json import seal, unseal
from mixport.storage.store import Store

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def noise(store: Store, *, images: int, size: tuple[int, int] = (8, 8)) -> Path:
    preprocessing = Preprocessing(size=size, mean=(0, 0, 0), std=(1, 1, 1))
    recipe = parse_calibration("noise", images=images, seed=0, preprocessing=preprocessing)
    return calibrate(recipe, store=store, progress=SilentProgress()).images_path.parent


def summary(key: str, *, days: int | None, size: int = 100) -> SetSummary:
    return SetSummary(
        key=key,
        path=Path(key),
        method="noise",
        source=None,
        count=1,
        size=(8, 8),
        seed=0,
        content_sha256="",
        bytes=size,
        created=None if days is None else NOW - timedelta(days=days),
    )


def test_list_find_and_verify(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert list_sets(store) == []
    folders = {noise(store, images=2), noise(store, images=3, size=(8, 4))}
    sets = list_sets(store)
    assert {one.path for one in sets} == folders
    assert {(one.count, one.size, one.method) for one in sets} == {(2, (8, 8), "noise"), (3, (8, 4), "noise")}
    assert find_set(store, sets[0].key[:8]) == sets[0]
    for key in ("", "zz"):
        with pytest.raises(BadInputError, match="calibration set"):
            find_set(store, key)
    assert verify_sets(store) == {one.key: [] for one in sets}
    (sets[0].path / "images.npy").unlink()
    assert verify_sets(store, keys=[sets[0].key]) == {sets[0].key: ["images.npy: missing"]}
    assert sets[0].path.is_dir(), "verify changes nothing"


@pytest.mark.parametrize("size", [5, [1], None, ["a", 2]])
def test_a_set_that_describes_itself_wrongly_is_listed(tmp_path: Path, size: object) -> None:
    store = Store(tmp_path)
    record = noise(store, images=2, size=(7, 9)) / "entry.json"
    found = unseal(record.read_bytes())
    assert found["metadata"]["size"] == [7, 9]
    record.write_bytes(seal({**found, "metadata": {**found["metadata"], "size": size}}))
    assert [one.size for one in list_sets(store)] == [(0, 0)]


def test_unreadable_sets_are_listed_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (noise(store, images=2) / "entry.json").write_text("{")
    (one,) = list_sets(store)
    assert (one.created, one.count, one.method) == (None, 0, "")


SETS = [summary("a", days=1), summary("b", days=10), summary("c", days=100), summary("d", days=None)]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ({}, []),
        ({"keys": ["b"]}, ["b"]),
        ({"older_than": timedelta(days=10)}, ["d", "c"]),
        ({"older_than": timedelta(days=9)}, ["d", "c", "b"]),
        ({"keep_bytes": 400}, []),
        ({"keep_bytes": 399}, ["d"]),
        ({"keep_bytes": 150}, ["d", "c", "b"]),
        ({"keep_bytes": 0}, ["d", "c", "b", "a"]),
        ({"keys": ["a"], "keep_bytes": 200}, ["d", "a"]),
    ],
)
def test_what_may_go(rules: dict[str, object], chosen: list[str]) -> None:
    assert [one.key for one in select_for_pruning(SETS, now=NOW, **rules)] == chosen  # type: ignore[arg-type]
