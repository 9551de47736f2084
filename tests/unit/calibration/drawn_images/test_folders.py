from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from mixport.calibration.details import details_of, set_details, sheet_title
from mixport.calibration.drawn_images.shards import ShardFolder, lock_file
from mixport.calibration.entries import IMAGES_FILE, KIND, PROMPTS_FILE, content_sha256
from mixport.calibration.sets import (
    find_set,
    list_drawn_folders,
    list_sets,
    prunable,
    remove,
    stage_results,
    verify_sets,
)
from mixport.records.errors import BadInputError, StoreError
from mixport.records.fingerprint import sha256_json
from mixport.storage.sealed_json import seal, unseal
from mixport.storage.store import Store

ASKED: dict[str, Any] = {
    "steps": 2,
    "scheduler": {"class": "DDIMScheduler", "config": {}},
    "files": {"a": "b"},
    "prompts": {"strategy": "mixup", "seed": 7, "class_names": ["cat", "dog", "ship"], "glosses": None},
}
FAMILY, SET, OTHER = sha256_json(ASKED), "5e" * 32, "0a" * 32
TEXTS = [
    "A photo of a cat and a dog",
    "A photo of a dog and a ship",
    "A photo of a ship and a cat",
    "A photo of a cat and a ship",
]
DETAILS: dict[str, Any] = {
    "source": "gen",
    "pipeline": "TinyPipeline",
    "scheduler": "DDIMScheduler",
    "steps": 2,
    "guidance": 3.5,
}
PROMPTS = {
    "strategy": "mixup", "classes": 3, "classes_per_prompt": 2, "template": None, "pairing": "balanced",
    "label_text": "name",
}  # fmt: skip


def rows(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"index": index, "text": text, "classes": [0, 1], "seed": index} for index, text in enumerate(texts)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A cache with a set of three drawn images, the four that were drawn, a set of noise, and a stage
    result.
    """
    store = Store(tmp_path / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    folder = ShardFolder(store.root / "drawn" / FAMILY, batch=2, cache=store.root)
    with folder.lock():
        recipe = {"key": FAMILY, "generator": "gen", "created": "2026-11-01T00:00:00+00:00", "asked": ASKED}
        folder.write_file("recipe.json", seal(recipe))
        for first in (0, 2):
            folder.write(first, pixels[first : first + 2], note={"prompts": rows(TEXTS)[first : first + 2]})
        folder.seal(metadata={})
    metadata: dict[str, Any] = {
        "method": "mixup",
        "count": 3,
        "size": [8, 8],
        "seed": 7,
        "generator": "gen",
        "drawn": FAMILY,
    }
    metadata |= {"generator_details": DETAILS, "prompts": PROMPTS, "filters": None}
    with store.create(KIND, SET, metadata=metadata) as made:
        np.save(made / IMAGES_FILE, pixels[:3])
        (made / PROMPTS_FILE).write_text(json.dumps(rows(TEXTS[:3])), encoding="utf-8")
        metadata["content_sha256"] = content_sha256(made / IMAGES_FILE)
    with store.create(
        KIND, OTHER, metadata={"method": "noise", "count": 1, "size": [8, 8], "seed": 0, "generator": None}
    ) as made:
        np.save(made / IMAGES_FILE, pixels[:1])
    with store.create("quantized", "cc") as made:
        (made / "file").write_bytes(b"1")
    return store


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_sets_and_drawn_images_are_listed_apart(store: Store) -> None:
    assert {(one.key, one.kind, one.generator, one.drawn) for one in list_sets(store)} == {
        (SET, "calibration", "gen", FAMILY),
        (OTHER, "calibration", None, None),
    }
    (drawn_folder,) = list_drawn_folders(store)
    assert (
        drawn_folder.key,
        drawn_folder.kind,
        drawn_folder.generator,
        drawn_folder.method,
        drawn_folder.count,
        drawn_folder.seed,
    ) == (
        FAMILY,
        "drawn",
        "gen",
        "mixup",
        4,
        7,
    )
    assert drawn_folder.created == datetime(2026, 11, 1, tzinfo=UTC)
    assert drawn_folder.bytes == sum(path.stat().st_size for path in drawn_folder.path.iterdir())
    assert len(drawn_folder.content_sha256) == 64
    assert [entry.kind for entry in stage_results(store)] == ["quantized"]


def test_both_are_found_by_the_beginning_of_their_key(store: Store) -> None:
    assert find_set(store, FAMILY[:8]).kind == "drawn"
    assert find_set(store, "5e").kind == "calibration"
    with pytest.raises(BadInputError, match="no calibration set starts with 'cc'"):
        find_set(store, "cc")


def test_details_of_a_set(store: Store) -> None:
    details = set_details(store, SET)
    assert (details.generator, details.prompts, details.filters, tuple(details.texts)) == (
        DETAILS,
        PROMPTS,
        None,
        tuple(TEXTS[:3]),
    )
    assert details_of(store, find_set(store, SET)) == details
    noise = set_details(store, OTHER)
    assert (noise.generator, noise.prompts, noise.filters, tuple(noise.texts)) == (None, None, None, ())


def test_details_of_drawn_images(store: Store) -> None:
    details = details_of(store, find_set(store, FAMILY))
    assert details.generator == {"steps": 2, "scheduler": "DDIMScheduler", "scheduler_config": {}}
    assert details.prompts == {"strategy": "mixup", "seed": 7, "classes": 3}
    assert list(details.texts) == TEXTS


def test_the_title_of_a_sheet(store: Store) -> None:
    one = find_set(store, SET)
    assert sheet_title(one, set_details(store, SET)) == (
        "3 calibration images: mixup of 2 classes",
        "generator gen: TinyPipeline, DDIMScheduler, steps 2, guidance 3.5",
        f"seed 7, recipe {SET}",
    )
    assert sheet_title(find_set(store, OTHER), set_details(store, OTHER)) == (
        "1 calibration images: noise",
        f"seed 0, recipe {OTHER}",
    )


def test_every_flipped_byte_is_found(store: Store) -> None:
    whole = {SET: [], OTHER: [], f"drawn/{FAMILY}": []}
    assert verify_sets(store) == whole
    shard = store.root / "drawn" / FAMILY / "000002-000003.zip"
    flip(shard)
    assert verify_sets(store) == whole | {
        f"drawn/{FAMILY}": ["000002-000003.zip: content differs from its recorded SHA-256"]
    }
    assert verify_sets(store, keys=[SET]) == {
        SET: [],
        f"drawn/{FAMILY}": verify_sets(store)[f"drawn/{FAMILY}"],
    }, "and its source"
    assert verify_sets(store, keys=[OTHER]) == {OTHER: []}
    assert verify_sets(store, keys=[FAMILY]).keys() == {f"drawn/{FAMILY}"}
    assert shard.is_file(), "verify changes nothing"
    flip(store.root / "drawn" / FAMILY / "recipe.json")
    assert [line.partition(":")[0] for line in verify_sets(store)[f"drawn/{FAMILY}"]] == [
        "recipe.json",
        "000002-000003.zip",
    ]
    flip(store.root / KIND / SET / PROMPTS_FILE)
    assert verify_sets(store)[SET] == [f"{PROMPTS_FILE}: content differs from its recorded SHA-256"]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ({"keys": [FAMILY[:8]]}, [FAMILY]),
        ({"keys": ["5e", FAMILY]}, [FAMILY, SET]),
        ({"older_than": timedelta(days=10)}, [FAMILY]),
        ({"stages": True}, ["cc"]),
        ({"keep_bytes": 0}, [FAMILY, OTHER, SET]),
        ({"stages": True, "keep_bytes": 10**9}, ["cc"]),
    ],
)
def test_what_would_be_pruned(store: Store, rules: dict[str, Any], chosen: list[str]) -> None:
    later = datetime(2026, 11, 20, tzinfo=UTC)
    for path in (store.root / KIND).glob("*/entry.json"):
        path.write_bytes(seal({**unseal(path.read_bytes()), "created": later.isoformat()}))
    found = [one.key for one in prunable(store, now=later, **rules)]
    assert found[:1] == chosen[:1], "the oldest first"
    assert sorted(found) == sorted(chosen)


def test_what_is_removed_is_gone(store: Store) -> None:
    for one in prunable(store, now=datetime.now(UTC), stages=True, keep_bytes=0):
        assert remove(store, one)
    assert store.entries() == []
    assert list_drawn_folders(store) == []


def test_images_that_another_process_draws_stay(store: Store) -> None:
    drawn_folder = find_set(store, FAMILY)
    with FileLock(lock_file(drawn_folder.path)):
        assert not remove(store, drawn_folder)
    assert drawn_folder.path.is_dir()
    assert remove(store, drawn_folder)
    assert not drawn_folder.path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b'{"asked": 3, "created": "soon"}'])
def test_drawn_images_that_do_not_describe_themselves_are_listed_too(store: Store, content: bytes) -> None:
    (store.root / "drawn" / FAMILY / "recipe.json").write_bytes(content)
    (store.root / "drawn" / FAMILY / "manifest.json").write_bytes(content)
    (drawn_folder,) = list_drawn_folders(store)
    assert (drawn_folder.created, drawn_folder.generator, drawn_folder.method, drawn_folder.count) == (
        None,
        None,
        "",
        4,
    )
    details = details_of(store, drawn_folder)
    assert (details.generator, details.prompts, tuple(details.texts)) == (None, None, ())
    assert verify_sets(store)[f"drawn/{FAMILY}"] != []


def test_records_of_the_wrong_kind_are_shown_as_far_as_they_go(store: Store) -> None:
    folder = store.root / "drawn" / FAMILY
    recipe = unseal((folder / "recipe.json").read_bytes())
    recipe["asked"]["prompts"]["class_names"] = 5
    (folder / "recipe.json").write_bytes(seal(recipe))
    found = unseal((folder / "manifest.json").read_bytes())
    found["shards"][0]["note"]["prompts"] = 5
    (folder / "manifest.json").write_bytes(seal(found))
    (drawn_folder,) = list_drawn_folders(store)
    details = details_of(store, drawn_folder)
    assert (details.prompts or {})["classes"] == 0
    assert tuple(details.texts) == tuple(TEXTS[2:])
    record = store.root / KIND / SET / "entry.json"
    record.write_bytes(
        seal({**(entry := unseal(record.read_bytes())), "metadata": {**entry["metadata"], "prompts": 5}})
    )
    assert set_details(store, SET).prompts is None


def test_prompts_that_cannot_be_read(store: Store) -> None:
    (store.root / KIND / SET / PROMPTS_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be read") as caught:
        set_details(store, SET)
    assert caught.value.hint == "mixport calib verify"
    assert tuple(details_of(store, find_set(store, SET)).texts) == ()
