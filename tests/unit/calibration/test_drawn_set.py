from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mixport.calibration.calibrate import cached_images, calibrate
from mixport.calibration.details import details_of, set_details
from mixport.calibration.drawn_images import drawn_folder as drawn_folder
from mixport.calibration.drawn_images.check import verify_drawn_folder
from mixport.calibration.drawn_images.drawn_folder import DRAWN_KIND
from mixport.calibration.drawn_images.shards import ShardIndex, read_manifest
from mixport.calibration.entries import KIND, prompts_of
from mixport.calibration.generator.drawer import Drawer
from mixport.calibration.prompts.prompts import prompts
from mixport.calibration.recipe import CalibrationRecipe, FilterSettings
from mixport.calibration.sets import list_drawn_folders
from mixport.records.calibration_set import CalibrationSet
from mixport.records.errors import BadInputError, BadOptionError, InvariantError, StoreError
from mixport.records.fingerprint import sha256_arrays
from mixport.records.progress import SilentProgress
from mixport.storage.sealed_json import seal, unseal
from mixport.storage.store import Store
from tests.unit.calibration.conftest import Steps, drawn_recipe, prompt_recipe


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The generators that were opened."""
    names: list[str] = []
    real = drawn_folder.open_pipeline

    def opening(request: Any) -> Any:
        names.append(request.generator.name)
        return real(request)

    monkeypatch.setattr(drawn_folder, "open_pipeline", opening)
    return names


@pytest.fixture
def recipe(tiny_pipeline: Path) -> Callable[..., CalibrationRecipe]:
    def making(*, images: int, **changes: Any) -> CalibrationRecipe:
        return drawn_recipe(tiny_pipeline, images=images, **changes)

    return making


def draw(
    recipe: CalibrationRecipe, store: Store, *, progress: Any = None, scores: Any = None
) -> CalibrationSet:
    return calibrate(recipe, store=store, progress=progress or SilentProgress(), scores=scores)


def pixels(made: CalibrationSet) -> NDArray[np.uint8]:
    return np.load(made.images_path, allow_pickle=False)


def drawn_folders(store: Store) -> list[Path]:
    return sorted(path for path in (store.root / DRAWN_KIND).iterdir() if path.is_dir())


def manifest(store: Store) -> ShardIndex:
    (folder,) = drawn_folders(store)
    found, problem = read_manifest(folder)
    assert problem is None
    assert found is not None
    return found


def test_a_recipe_becomes_a_set(store: Store, recipe: Any, tiny_pipeline: Path) -> None:
    asked = recipe(images=6)
    made = draw(asked, store)
    assert (made.count, made.method, made.generator) == (6, "mixup", str(tiny_pipeline))
    assert pixels(made).shape == (6, 16, 16, 3)
    assert made.content_sha256 == sha256_arrays({"images": pixels(made)})
    assert made.images_path == store.root / KIND / made.recipe_key / "images.npy"
    sequence = prompts(asked.prompts, count=8)
    assert prompts_of(made.images_path.parent) == tuple(prompt.text for prompt in sequence[:6])
    metadata = store.metadata(KIND, made.recipe_key)
    assert metadata["prompts"]["strategy"] == "mixup"
    assert metadata["generator_details"]["pipeline"] == "StableDiffusionPipeline"
    assert metadata["generator_details"]["size"] == [16, 16]
    assert metadata["filters"] is None
    assert [path.name for path in drawn_folders(store)] == [metadata["drawn"]]


def test_the_folder_of_drawn_images_explains_itself(store: Store, recipe: Any) -> None:
    asked = recipe(images=6)
    draw(asked, store)
    (folder,) = drawn_folders(store)
    assert {path.name for path in folder.iterdir()} == {
        "recipe.json",
        "manifest.json",
        "000000-000003.zip",
        "000004-000007.zip",
    }
    described = json.loads((folder / "recipe.json").read_text())
    assert described["key"] == folder.name
    assert described["asked"]["prompts"]["class_names"] == list(asked.prompts.class_names)
    found = manifest(store)
    sequence = prompts(asked.prompts, count=8)
    notes = [note for shard in found.shards for note in shard.note["prompts"]]
    assert notes == [{"text": one.text, "classes": list(one.classes), "seed": one.seed} for one in sequence]
    assert [shard.note["pieces"] for shard in found.shards] == [[4], [4]]
    assert found.count == 8
    assert found.metadata["scheduler"]["class"] == "DPMSolverMultistepScheduler"
    assert verify_drawn_folder(folder) == []


def test_images_are_brought_to_the_size_of_the_model(store: Store, recipe: Any) -> None:
    assert pixels(draw(recipe(images=2, size=(9, 12)), store)).shape == (2, 9, 12, 3)
    assert pixels(draw(recipe(images=2), store)).shape == (2, 16, 16, 3)
    assert len(drawn_folders(store)) == 1


def test_a_shorter_set_is_the_beginning_of_a_longer_one(store: Store, tmp_path: Path, recipe: Any) -> None:
    long = draw(recipe(images=10), Store(tmp_path / "other"))
    short = draw(recipe(images=3), store)
    np.testing.assert_array_equal(pixels(short), pixels(long)[:3])


def test_growing_draws_what_is_missing(store: Store, tmp_path: Path, recipe: Any, opens: list[str]) -> None:
    steps = Steps()
    draw(recipe(images=6), store, progress=steps)
    grown = draw(recipe(images=13), store, progress=steps)
    assert [(total, done) for (_, total), done in zip(steps.bars, steps.done, strict=True)] == [
        (8, 8),
        (8, 8),
    ]
    assert len(opens) == 2
    at_once = draw(recipe(images=13), Store(tmp_path / "other"))
    assert grown.content_sha256 == at_once.content_sha256
    assert manifest(store).content_sha256 == manifest(Store(tmp_path / "other")).content_sha256


def test_fewer_images_draw_nothing(store: Store, recipe: Any, opens: list[str]) -> None:
    draw(recipe(images=8), store)
    assert cached_images(recipe(images=8), store=store) == 8
    opens.clear()
    steps = Steps()
    for images in (8, 5, 1):
        assert cached_images(recipe(images=images), store=store) == images
        assert draw(recipe(images=images), store, progress=steps).count == images
    assert (opens, steps.bars) == ([], [])
    assert cached_images(recipe(images=20), store=store) == 8
    assert cached_images(recipe(images=4, steps=2), store=store) == 0


def test_a_moved_pipeline_is_found_again(
    store: Store, tmp_path: Path, recipe: Any, tiny_pipeline: Path, opens: list[str]
) -> None:
    first = draw(recipe(images=4), store)
    moved = Path(shutil.copytree(tiny_pipeline, tmp_path / "moved"))
    second = draw(drawn_recipe(moved, images=4), store)
    assert second == dataclasses.replace(first, generator=str(moved))
    assert len(opens) == 1


@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_was_drawn_before_an_error_stays(
    store: Store, tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real, drawn = Drawer.draw, list[int]()

    def failing(self: Drawer, indices: Any) -> Any:
        if len(drawn) == after:
            raise KeyboardInterrupt
        drawn.append(indices[0])
        return real(self, indices)

    monkeypatch.setattr(Drawer, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        draw(recipe(images=12), store)
    monkeypatch.undo()
    assert cached_images(recipe(images=12), store=store) == 4 * after
    steps = Steps()
    resumed = draw(recipe(images=12), store, progress=steps)
    assert steps.bars == [("drawing images", 12 - 4 * after)]
    assert store.damaged == []
    assert resumed.content_sha256 == draw(recipe(images=12), Store(tmp_path / "other")).content_sha256
    assert manifest(store).count == 12


def test_everything_drawn_but_not_sealed_is_sealed(store: Store, recipe: Any, opens: list[str]) -> None:
    draw(recipe(images=8), store)
    before = manifest(store)
    (folder,) = drawn_folders(store)
    (folder / "manifest.json").unlink()
    opens.clear()
    draw(recipe(images=7), store)
    assert opens == []
    assert manifest(store).content_sha256 == before.content_sha256


@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_shard_is_kept_told_and_drawn_again(store: Store, recipe: Any, sealed: bool) -> None:
    made = draw(recipe(images=12), store)
    (folder,) = drawn_folders(store)
    shard = folder / "000004-000007.zip"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    if not sealed:
        (folder / "manifest.json").unlink()
    assert len(verify_drawn_folder(folder)) == 1
    steps = Steps()
    again = draw(recipe(images=11), store, progress=steps)
    np.testing.assert_array_equal(pixels(again), pixels(made)[:11])
    assert steps.bars == [("drawing images", 4)]
    (damaged,) = store.damaged
    assert damaged.kind == DRAWN_KIND
    assert damaged.problems[0].startswith(shard.name)
    assert damaged.moved_to is not None
    assert damaged.moved_to.read_bytes() == bytes(data)
    assert verify_drawn_folder(folder) == []


def test_a_damaged_set_is_made_again_from_the_shards(store: Store, recipe: Any, opens: list[str]) -> None:
    made = draw(recipe(images=4), store)
    opens.clear()
    with made.images_path.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"\0\1\2\3")
    assert draw(recipe(images=4), store) == made
    assert opens == []
    assert [one.kind for one in store.damaged] == [KIND]


def test_images_of_other_prompts_are_not_believed(store: Store, recipe: Any) -> None:
    made = draw(recipe(images=8), store)
    (folder,) = drawn_folders(store)
    shards = [folder / "000000-000003.zip", folder / "000004-000007.zip"]
    found = unseal((folder / "manifest.json").read_bytes())
    found["shards"][0]["note"]["prompts"][0]["text"] = "A sketch of a cat and a dog"
    (folder / "manifest.json").write_bytes(seal(found))
    again = draw(recipe(images=7), store)
    np.testing.assert_array_equal(pixels(again), pixels(made)[:7])
    assert [one.problems for one in store.damaged] == [(f"{shards[0].name}: was drawn from other prompts",)]


def asked_for_more_steps(folder: Path) -> None:
    found = unseal((folder / "recipe.json").read_bytes())
    (folder / "recipe.json").write_bytes(seal({**found, "asked": {**found["asked"], "steps": 2}}))


def test_verify_finds_a_changed_recipe(store: Store, recipe: Any) -> None:
    draw(recipe(images=4), store)
    (folder,) = drawn_folders(store)
    asked_for_more_steps(folder)
    assert verify_drawn_folder(folder) == ["recipe.json: does not fit the key"]
    (folder / "recipe.json").unlink()
    assert verify_drawn_folder(folder) == ["recipe.json: missing"]


@pytest.mark.parametrize("images", [3, 8])
def test_a_changed_recipe_is_kept_told_and_written_again(store: Store, recipe: Any, images: int) -> None:
    draw(recipe(images=4), store)
    (folder,) = drawn_folders(store)
    asked_for_more_steps(folder)
    draw(recipe(images=images), store)
    assert [one.problems for one in store.damaged] == [("recipe.json: does not fit the key",)]
    assert verify_drawn_folder(folder) == []


def test_a_manifest_that_contradicts_itself_is_kept_told_and_written_again(
    store: Store, recipe: Any, opens: list[str]
) -> None:
    draw(recipe(images=4), store)
    (folder,) = drawn_folders(store)
    before = manifest(store).content_sha256
    found = unseal((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(seal({**found, "content_sha256": "0" * 64}))
    assert verify_drawn_folder(folder) == ["manifest.json: content_sha256 does not fit its shards"]
    opens.clear()
    draw(recipe(images=3), store)
    assert [one.problems for one in store.damaged] == [
        ("manifest.json: content_sha256 does not fit its shards",)
    ]
    assert opens == []
    assert manifest(store).content_sha256 == before


def test_a_manifest_with_a_strange_time_is_gone_on_with(store: Store, recipe: Any) -> None:
    draw(recipe(images=4), store)
    (folder,) = drawn_folders(store)
    document = unseal((folder / "manifest.json").read_bytes())
    document["metadata"]["seconds"] = "long"
    (folder / "manifest.json").write_bytes(seal(document))
    start = time.perf_counter()
    draw(recipe(images=8), store)
    # A time that cannot be read counts as none: what is told is what this run took.
    assert 0 < manifest(store).metadata["seconds"] <= time.perf_counter() - start


def test_a_folder_in_which_nothing_was_drawn_yet_is_whole(store: Store) -> None:
    """As a killed process, or one that draws its first batch, leaves it."""
    folder = store.root / DRAWN_KIND / ("a" * 64)
    folder.mkdir(parents=True)
    assert verify_drawn_folder(folder) == []


def test_two_at_once_draw_once(store: Store, recipe: Any, opens: list[str]) -> None:
    sets: list[CalibrationSet] = []
    steps = [Steps(), Steps()]
    threads = [
        threading.Thread(
            target=lambda one=one: sets.append(draw(recipe(images=8), Store(store.root), progress=one))
        )
        for one in steps
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(sets) == 2
    assert sets[0] == sets[1]
    assert len(opens) == 1
    assert sum(total for one in steps for name, total in one.bars if name == "drawing images") == 8
    assert verify_drawn_folder(drawn_folders(store)[0]) == []


def test_far_pairs_ask_the_text_encoder_once(store: Store, recipe: Any, opens: list[str]) -> None:
    far = recipe(images=4, prompts=prompt_recipe(pairing="far"))
    draw(far, store)
    assert len(opens) == 1
    draw(dataclasses.replace(far, images=3), store)
    assert len(opens) == 1
    folder = next(path for path in drawn_folders(store) if (path / "similarity.npz").is_file())
    data = bytearray((folder / "similarity.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "similarity.npz").write_bytes(data)
    assert [line.partition(":")[0] for line in verify_drawn_folder(folder)] == ["similarity.npz"]
    draw(dataclasses.replace(far, images=2), store)
    assert [one.problems[0].partition(":")[0] for one in store.damaged] == ["similarity.npz"]
    assert verify_drawn_folder(folder) == []


def some_blackened(monkeypatch: pytest.MonkeyPatch, places: set[int]) -> None:
    """Let the generator's safety checker object to these images."""
    real = Drawer.draw

    def drawing(self: Drawer, indices: Any) -> Any:
        made = real(self, indices)
        black = tuple(place for place, index in enumerate(indices) if index in places)
        made.images[list(black)] = 0
        return dataclasses.replace(made, blackened=black)

    monkeypatch.setattr(Drawer, "draw", drawing)


def test_blackened_images_are_counted(store: Store, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    some_blackened(monkeypatch, {1, 4, 6})
    counts: list[tuple[int, Any]] = []
    for images in (8, 6, 1):
        made = draw(recipe(images=images), store)
        counts.append(
            (made.blackened, (set_details(store, made.recipe_key).generator or {}).get("blackened"))
        )
    assert counts == [(3, 3), (2, 2), (0, None)]
    (drawn,) = list_drawn_folders(store)
    assert (details_of(store, drawn).generator or {})["blackened"] == 3
    assert draw(recipe(images=6), store).blackened == 2, "from the cache too"


def test_blackened_images_are_counted_among_those_that_filters_keep(
    store: Store, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_blackened(monkeypatch, {1, 4, 6})
    made = draw(recipe(images=4, filters=FilterSettings(keep_energy=0.5)), store, scores=Brightness())
    assert (pixels(made).max(axis=(1, 2, 3)) == 0).sum() == 3, "the darkest are kept here"
    assert made.blackened == 3
    assert (set_details(store, made.recipe_key).generator or {})["blackened"] == 3


def test_a_real_safety_checker_is_counted(store: Store, tmp_path: Path) -> None:
    from tests.diffusion import tiny_stable_diffusion

    prudish = tiny_stable_diffusion(tmp_path / "prudish", prudish=True)
    made = draw(drawn_recipe(prudish, images=3, safety_checker=True), store)
    assert pixels(made).max() == 0
    assert made.blackened == 3
    unchecked = draw(drawn_recipe(prudish, images=3), store)
    assert pixels(unchecked).max() > 0
    assert unchecked.blackened == 0
    assert "blackened" not in (set_details(store, unchecked.recipe_key).generator or {})


class Brightness:
    """Scores that prefer dark images."""

    def energy(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images.astype(np.float64).mean(axis=(1, 2, 3))

    def statistics(
        self, images: NDArray[np.uint8], *, chosen: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], str]:
        return -self.energy(images if chosen is None else images[list(chosen)]), "brightness"


def test_filters_keep_the_best_of_more(store: Store, recipe: Any, opens: list[str]) -> None:
    asked = recipe(images=4, filters=FilterSettings(keep_energy=0.5))
    made = draw(asked, store, scores=Brightness())
    pool = pixels(draw(recipe(images=8), store))
    kept = np.sort(np.argsort(Brightness().energy(pool), kind="stable")[:4])
    np.testing.assert_array_equal(pixels(made), pool[kept])
    sequence = prompts(asked.prompts, count=8)
    assert prompts_of(made.images_path.parent) == tuple(sequence[place].text for place in kept)
    assert store.metadata(KIND, made.recipe_key)["filters"] == {
        "keep_energy": 0.5,
        "keep_statistics": 1.0,
        "asked": 4,
        "drawn": 8,
        "dropped_by_energy": 4,
        "dropped_by_statistics": 0,
        "statistic": "",
    }
    assert draw(asked, store, scores=Brightness()) == made
    assert len(opens) == 1
    assert cached_images(asked, store=store) is None


def test_another_model_keeps_other_images(store: Store, recipe: Any) -> None:
    class Reverse(Brightness):
        def energy(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
            return -super().energy(images)

    asked = recipe(images=4, filters=FilterSettings(keep_energy=0.5))
    assert (
        draw(asked, store, scores=Brightness()).recipe_key != draw(asked, store, scores=Reverse()).recipe_key
    )


def test_filters_without_scores_are_our_mistake(store: Store, recipe: Any) -> None:
    with pytest.raises(InvariantError, match="scores"):
        draw(recipe(images=4, filters=FilterSettings(keep_energy=0.5)), store)


def test_a_recipe_that_makes_no_prompts_fails_before_anything_is_loaded(
    store: Store, recipe: Any, opens: list[str]
) -> None:
    with pytest.raises(BadOptionError):
        draw(recipe(images=4, prompts=prompt_recipe(classes_per_prompt=9)), store)
    assert opens == []


def test_a_generator_that_cannot_draw_leaves_nothing(store: Store, recipe: Any) -> None:
    with pytest.raises(BadInputError, match="NaN"):
        draw(recipe(images=4, guidance=1e38, negative_prompt="blurry"), store)
    assert drawn_folders(store) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_cannot_be_written(
    store: Store, recipe: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match=os.strerror(number)) as caught:
        draw(recipe(images=4), store)
    assert "--cache DIR" in str(caught.value.hint)
    monkeypatch.undo()
    assert draw(recipe(images=4), store).count == 4
    assert store.damaged == []
