"""No byte of what the cache keeps of a drawn set can change unseen."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from mixport.calibration.calibrate import calibrate
from mixport.calibration.drawn_images.similarity_file import SIMILARITY_FILE, pack_similarity, read_similarity
from mixport.calibration.sets import verify_sets
from mixport.records.progress import SilentProgress
from mixport.storage.store import Store
from tests.unit.calibration.conftest import drawn_recipe, prompt_recipe

ENDS, INSIDE = 12, 60
FILES = (
    "entry.json",
    "images.npy",
    "prompts.json",
    "recipe.json",
    "manifest.json",
    "000004-000007.zip",
    SIMILARITY_FILE,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path) -> Store:
    """A cache with one drawn set whose pairs are far apart."""
    store = Store(tmp_path_factory.mktemp("cache"))
    recipe = drawn_recipe(tiny_pipeline, images=5, prompts=prompt_recipe(pairing="far"))
    calibrate(recipe, store=store, progress=SilentProgress())
    return store


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(store: Store, name: str) -> None:
    path = next(one for one in store.root.glob("*/*/*") if one.name == name)
    assert not any(verify_sets(store).values())
    data = path.read_bytes()
    chance = random.Random(name)
    inside = [chance.randrange(len(data)) for _ in range(INSIDE)]
    for offset in {*range(ENDS), *range(len(data) - ENDS, len(data)), *inside}:
        # A space that becomes another space is a change too.
        mask = 0x20 ^ 0x0A if data[offset] == 0x20 else chance.randrange(1, 256)
        path.write_bytes(data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :])
        problems = [line for lines in verify_sets(store).values() for line in lines]
        assert [line.partition(":")[0] for line in problems] == [name], (offset, mask)
    path.write_bytes(data)
    assert not any(verify_sets(store).values())


def test_the_files_above_are_all_files(store: Store) -> None:
    assert {path.name for path in store.root.glob("*/*/*")} == {*FILES, "000000-000003.zip"}


def test_similarity_stays_a_file_that_numpy_reads(tmp_path: Path) -> None:
    cosine = np.random.default_rng(0).random((3, 3), np.float32)
    (tmp_path / SIMILARITY_FILE).write_bytes(pack_similarity(cosine))
    found, problem = read_similarity(tmp_path)
    assert problem is None
    np.testing.assert_array_equal(found, cosine)
    with np.load(tmp_path / SIMILARITY_FILE, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["cosine"], cosine)
