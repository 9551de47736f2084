from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixport.calibration.recipe import CalibrationRecipe, FilterSettings, PromptRecipe
from mixport.model.float_model import load_model
from mixport.model.scores import ModelScores
from mixport.pipeline import stages
from mixport.pipeline.build_plan import BuildPlan, resolve
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.stages import StageContext, StageLog
from mixport.records.calibration_set import CalibrationSet
from mixport.records.errors import BadOptionError
from mixport.records.progress import SilentProgress
from mixport.storage.store import Damaged, Store


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def context(tmp_path: Path, notes: list[str]) -> StageContext:
    return StageContext(
        store=Store(tmp_path / "cache"), progress=SilentProgress(), log=StageLog(notes.append)
    )


def plan_of(**values: object) -> BuildPlan:
    return resolve(BuildOptions.of({"model": "tests.models:tiny", **values}))


def given(
    monkeypatch: pytest.MonkeyPatch,
    *,
    count: int,
    blackened: int = 0,
    store_damaged: list[Damaged] | None = None,
) -> list[dict[str, Any]]:
    """Replace `calibrate` by one that draws nothing; its calls are remembered."""
    calls: list[dict[str, Any]] = []

    def calibrate(recipe: CalibrationRecipe, **others: Any) -> CalibrationSet:
        calls.append({"recipe": recipe, **others})
        others["store"].damaged += store_damaged or []
        return CalibrationSet(
            images_path=Path("images.npy"),
            count=count,
            method=recipe.method,
            recipe_key="a" * 64,
            content_sha256="b" * 64,
            blackened=blackened,
        )

    monkeypatch.setattr("mixport.calibration.calibrate.calibrate", calibrate)
    return calls


def test_a_stage_says_when_it_starts_and_when_it_is_done(notes: list[str]) -> None:
    log = StageLog(notes.append)
    with log.stage("quantize"):
        assert notes == ["quantize ..."]
        log.reuse("quantize")
    assert notes[1].startswith("quantize: 0.0 s")
    assert notes[1].endswith("(from the cache)")
    assert log.seconds.keys() == {"quantize"}


def test_a_stage_that_fails_is_not_done(notes: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), StageLog(notes.append).stage("lower"):
        raise ZeroDivisionError
    assert notes == ["lower ..."]


def test_calibrate_is_asked_for_what_the_options_say(
    context: StageContext, notes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text('["cat", "dog", "ship"]', encoding="utf-8")
    calls = given(monkeypatch, count=9)
    plan = plan_of(images=9, seed=3, classes_per_prompt=3, keep_energy=0.5)
    model = load_model("tests.models:tiny", classes=tmp_path / "c.json")
    made = stages.calibrate(context, model, plan.recipe(model))
    assert made.count == 9
    (call,) = calls
    recipe: CalibrationRecipe = call["recipe"]
    assert recipe.prompts == PromptRecipe(
        strategy="mixup", class_names=("cat", "dog", "ship"), classes_per_prompt=3, seed=3
    )
    assert (recipe.images, recipe.filters, recipe.preprocessing) == (
        9,
        FilterSettings(keep_energy=0.5),
        model.preprocessing,
    )
    assert isinstance(call["scores"], ModelScores)
    assert call["scores"].model is model
    assert [note.partition(":")[0] for note in notes] == ["calibrate ...", "calibrate"]


def test_a_model_without_class_names_cannot_be_drawn_for() -> None:
    with pytest.raises(BadOptionError, match="--calib mixup needs class names") as caught:
        plan_of().recipe(load_model("tests.models:tiny"))
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("--classes FILE.json", "images:DIR", "noise"))


def test_fewer_images_than_asked_for_are_noted(
    context: StageContext, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, count=5)
    plan, model = plan_of(calib="images:photos", images=9), load_model("tests.models:tiny")
    stages.calibrate(context, model, plan.recipe(model))
    assert notes[-1] == "calibration: 9 images were asked for, photos has 5"


@pytest.mark.parametrize("blackened", [0, 3])
def test_black_images_are_noted(
    context: StageContext, notes: list[str], monkeypatch: pytest.MonkeyPatch, blackened: int
) -> None:
    given(monkeypatch, count=9, blackened=blackened)
    plan, model = plan_of(calib="noise", images=9), load_model("tests.models:tiny")
    stages.calibrate(context, model, plan.recipe(model))
    told = [note for note in notes if "black" in note]
    assert len(told) == (blackened > 0)
    if told:
        assert told[0].startswith(
            "calibration: 3 of 9 images are black, the generator's safety checker objected to them; "
            "hint: --no-gen"
        )


def test_damaged_entries_are_noted_with_their_new_place(
    context: StageContext, notes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = Damaged(
        kind="drawn", key="c" * 64, problems=("0.zip: 3 bytes, recorded 4",), moved_to=tmp_path / "there"
    )
    given(monkeypatch, count=9, store_damaged=[damaged])
    plan, model = plan_of(calib="noise", images=9), load_model("tests.models:tiny")
    context.store.damaged.append(Damaged(kind="old", key="d", problems=("told before",), moved_to=None))
    stages.calibrate(context, model, plan.recipe(model))
    told = [note for note in notes if "damaged" in note]
    assert told == [
        (
            "cache entry drawn/cccccccccccc is damaged (0.zip: 3 bytes, recorded 4): made again, kept "
            f"in {tmp_path / 'there'}"
        )
    ]


def test_a_damaged_stage_result_is_noted_and_made_again(context: StageContext, notes: list[str]) -> None:
    model = load_model("tests.models:tiny")
    images = np.zeros((2, 32, 32, 3), np.uint8)
    first = stages.float_logits(context, model, images, model_key="m")
    (entry,) = context.store.entries("float-logits")
    (entry.path / "logits.npy").write_bytes(b"")
    notes.clear()
    np.testing.assert_array_equal(stages.float_logits(context, model, images, model_key="m"), first)
    assert [
        note
        for note in notes
        if note.startswith(f"cache entry float-logits/{entry.key[:12]} is damaged (logits.npy: 0 bytes")
    ]
    assert not any(note.endswith("(from the cache)") for note in notes)
