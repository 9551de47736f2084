from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from mixport.calibration.calibrate import calibrate
from mixport.calibration.preview import Preview, preview
from mixport.calibration.recipe import (
    CalibrationRecipe,
    FilterSettings,
    GeneratorSettings,
    PromptRecipe,
    parse_calibration,
)
from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadInputError, BadOptionError
from mixport.records.progress import SilentProgress
from mixport.storage.store import Store
from tests.unit.calibration.conftest import Steps

SMALL = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = ("cat", "dog", "ship")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def drawn(
    source: str, *, images: int = 6, filters: FilterSettings | None = None, together: int = 2
) -> CalibrationRecipe:
    return parse_calibration(
        "mixup",
        images=images,
        seed=0,
        preprocessing=SMALL,
        prompts=PromptRecipe(strategy="mixup", class_names=CLASSES, classes_per_prompt=together),
        generator=GeneratorSettings(source=source, steps=1, batch=4, device="cpu"),
        filters=filters,
    )


def test_noise_and_what_is_there_of_it(store: Store) -> None:
    recipe = parse_calibration("noise", images=6, seed=0, preprocessing=SMALL)
    assert preview(recipe, store=store) == Preview(images=6, cached=0)
    calibrate(dataclasses.replace(recipe, images=4), store=store, progress=SilentProgress())
    assert preview(recipe, store=store) == Preview(images=6, cached=4)


def test_real_images_are_counted(store: Store, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((5, 8, 8, 3), np.uint8))
    recipe = parse_calibration(f"images:{tmp_path / 'few.npz'}", images=6, seed=0, preprocessing=SMALL)
    assert preview(recipe, store=store) == Preview(images=5)
    assert preview(dataclasses.replace(recipe, images=3), store=store).images == 3
    with pytest.raises(BadInputError, match="does not exist"):
        preview(dataclasses.replace(recipe, source=str(tmp_path / "nowhere")), store=store)


def test_a_drawn_set_settles_every_default_and_draws_nothing(store: Store, tiny_pipeline: Path) -> None:
    found = preview(drawn(str(tiny_pipeline)), store=store)
    assert (found.images, found.cached, found.pool, found.batch, found.to_draw) == (6, 0, 6, 4, 8)
    assert found.generator == GeneratorSettings(
        source=str(tiny_pipeline),
        scheduler="DPMSolverMultistepScheduler",
        steps=1,
        guidance=3.5,
        size=(16, 16),
        dtype="float32",
        batch=4,
        device="cpu",
    )
    assert store.entries() == []


def test_a_longer_set_in_the_cache_counts(store: Store, tiny_pipeline: Path) -> None:
    calibrate(drawn(str(tiny_pipeline), images=6), store=store, progress=SilentProgress())
    ahead = [preview(drawn(str(tiny_pipeline), images=count), store=store) for count in (3, 6, 8, 9, 20)]
    assert [one.cached for one in ahead] == [3, 6, 8, 8, 8]
    assert [one.to_draw for one in ahead] == [0, 0, 0, 4, 12]


def test_what_is_said_to_be_drawn_is_drawn(store: Store, tiny_pipeline: Path, steps: Steps) -> None:
    asked = drawn(str(tiny_pipeline), images=3, filters=FilterSettings(keep_energy=0.5))
    assert preview(asked, store=store).to_draw == 8, "six to choose from, in batches of four"
    calibrate(drawn(str(tiny_pipeline), images=3), store=store, progress=SilentProgress())
    assert preview(asked, store=store).to_draw == 4
    calibrate(drawn(str(tiny_pipeline), images=6), store=store, progress=steps)
    assert steps.bars == [("drawing images", 4)]
    assert preview(asked, store=store).to_draw == 0


def test_a_set_whose_drawn_images_were_deleted_needs_no_drawing(store: Store, tiny_pipeline: Path) -> None:
    calibrate(drawn(str(tiny_pipeline), images=3), store=store, progress=SilentProgress())
    shutil.rmtree(store.root / "drawn")
    assert [preview(drawn(str(tiny_pipeline), images=count), store=store).to_draw for count in (3, 4)] == [
        0,
        4,
    ]


def test_filters_draw_more(store: Store, tiny_pipeline: Path) -> None:
    found = preview(drawn(str(tiny_pipeline), filters=FilterSettings(keep_energy=0.5)), store=store)
    assert (found.images, found.pool, found.cached, found.to_draw) == (6, 12, None, 12)


def test_the_hub_is_not_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("mixport.calibration.generator.resolve.hub_folder", no_hub)
    recipe = drawn("owner/model")
    assert preview(recipe, store=store) == Preview(images=6, pool=6, batch=4, generator=recipe.generator)


def test_what_cannot_work_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="--classes-per-prompt is 4, more than the 3 classes"):
        preview(drawn("owner/model", together=4), store=store)
    with pytest.raises(BadInputError, match="is no diffusers pipeline"):
        preview(drawn(str(tmp_path)), store=store)
