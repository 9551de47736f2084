"""Units with few values for each weight read more float values."""

from __future__ import annotations

from pathlib import Path

from mixport.records.choices.reconstruction_preset import PRESETS, Stage
from tests import reconstruction as small
from tests.reconstruction import DEFAULT, Recorder, changed, learn, task_of


def test_three_quarters_of_the_input_are_float_where_values_are_scarce() -> None:
    stage = Stage(input_drop=0.25, inner_drop=0.1, scarce=100.0)
    assert stage.for_unit(100.0) is stage.for_unit(1e9) is stage
    scarce = stage.for_unit(99.0)
    assert (scarce.input_drop, scarce.inner_drop) == (0.75, 0.1)
    assert Stage(input_drop=0.9, scarce=100.0).for_unit(1.0).input_drop == 0.9
    assert (stage.passes, scarce.passes) == (None, 4)
    assert Stage(input_drop=0.25).for_unit(0.0) == Stage(input_drop=0.25)


def test_units_say_how_much_was_dropped(tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path)
    # 12 images and their mirror images: `second` gives 12 x 12 places, `third` 10 x 10, and both sum 72
    # weights.
    values = {"second": 24 * 144 / 72, "third": 24 * 100 / 72}
    for limit, shares in ((1.0, [0.25, 0.25]), (40.0, [0.25, 0.75]), (60.0, [0.75, 0.75])):
        assert [0.75 if values[name] < limit else 0.25 for name in ("second", "third")] == shares
        made = learn(task, images, tmp_path, iters=2, preset=changed(DEFAULT, scarce=limit))
        assert [unit.dropped for unit in made.record.units] == shares


def test_passes_bound_the_steps(tmp_path: Path) -> None:
    assert Stage().within_passes(500, images=8, batch=4) == 500
    assert Stage(passes=4).within_passes(500, images=800, batch=32) == 100
    assert Stage(passes=4).within_passes(50, images=800, batch=32) == 50
    assert Stage(passes=4).within_passes(50, images=3, batch=32) == 1
    task, images = task_of(small.stack(), tmp_path)
    told = Recorder()
    made = learn(
        task, images, tmp_path, iters=20, preset=changed(DEFAULT, scarce=None, passes=4), progress=told
    )
    assert [(one.where, one.what) for one in made.decisions] == [
        (name, "learned in 4 steps, not 20") for name in ("second", "third")
    ]
    # 24 images in batches of 24: 4 steps a unit, and the bar is full all the same.
    assert sum(steps for steps, detail in told.calls if detail) == 2 * 4
    assert sum(steps for steps, _ in told.calls) == told.total == 2 * 20


def test_published_recipes_drop_what_they_publish() -> None:
    assert [
        name for name, preset in PRESETS.items() if any(stage.scarce is not None for stage in preset.stages)
    ] == ["mixport"]
