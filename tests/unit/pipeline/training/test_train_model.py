"""A training from options to its folder: what it is given, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mixport.model.float_model import load_model
from mixport.pipeline.training.train_model import TrainingResult, train
from mixport.records.errors import BadInputError, BadOptionError, TrainingError, UnsupportedModelError
from mixport.storage.store import Store
from tests.unit.train.toys import Told

TINY = "tests.models:tiny"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "d.npz"
    np.savez(
        path,
        images=rng.integers(0, 256, (20, 32, 32, 3), np.uint8),
        labels=rng.integers(0, 10, 20).astype(np.int64),
    )
    return path


def plain(data: Path, **options: Any) -> TrainingResult:
    folder = data.parent
    given: dict[str, Any] = {
        "method": "plain",
        "data": str(data),
        "epochs": 2,
        "batch": 8,
        "device": "cpu",
        "cache": folder / "cache",
        "out": folder / "out",
        **options,
    }
    return train(given.pop("model", TINY), progress=given.pop("progress", None), **given)


def epochs(data: Path) -> list[str]:
    return [entry.key for entry in Store(data.parent / "cache").entries("training")]


def test_the_record_says_what_was_trained_on_what(data: Path) -> None:
    result = plain(data, teacher="self", label_weight=0.5)
    record = result.record
    model = load_model(TINY)
    assert record.model == {"name": "tiny", "source": TINY, "sha256": model.sha256}
    assert record.teacher == TINY
    assert (record.data.method, record.data.images, record.data.held_out) == ("labelled", 19, 1)
    assert record.scheme is None and record.target is None and record.budget is None
    assert record.settings["label_weight"] == 0.5 and record.settings["robust"]["symmetry"] == 0.0
    assert "out" not in record.settings and "cache" not in record.settings
    assert [one.epoch for one in record.curve] == [0, 1]
    assert record.environment
    state = load_file(result.path / "weights.safetensors")
    assert state.keys() == model.module.state_dict().keys()
    assert not torch.equal(state["head.weight"], model.module.state_dict()["head.weight"])


def test_one_epoch_is_one_entry_and_a_second_run_takes_them_all(data: Path) -> None:
    first = plain(data)
    assert len(epochs(data)) == 1, "the last one is all that is needed"
    told = Told()
    again = plain(data, out=data.parent / "again", progress=told)
    assert told.reused == told.done == told.total == 4
    assert again.record.curve == first.record.curve
    assert len(epochs(data)) == 1


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.5}, {"seed": 1}, {"batch": 4}, {"augment": "none"}, {"teacher": "self"}, {"method": "satnl"}],
)
def test_what_decides_the_result_decides_the_entry(change: dict[str, Any], data: Path) -> None:
    plain(data, epochs=1)
    told = Told()
    plain(data, epochs=1, progress=told, **change)
    assert told.reused == 0 and len(epochs(data)) == 2


def test_other_images_are_another_training(data: Path) -> None:
    plain(data, epochs=1)
    with np.load(data) as held:
        images, labels = held["images"], held["labels"].copy()
    labels[0] = (labels[0] + 1) % 10
    np.savez(data, images=images, labels=labels)
    told = Told()
    plain(data, epochs=1, progress=told)
    assert told.reused == 0


def test_a_broken_off_epoch_leaves_no_entry_and_no_folder(data: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        plain(data, progress=Told(most=3))
    assert len(epochs(data)) == 1
    assert not (data.parent / "out").exists()
    assert [path for path in data.parent.iterdir() if path.name.startswith(".")] == []


def test_a_training_that_diverges_leaves_no_folder(data: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in step \d of epoch \d \(plain\)"):
        plain(data, lr=1e30, epochs=4)
    assert not (data.parent / "out").exists()


def test_a_teacher_has_the_classes_of_the_model(data: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"--teacher tests.models:transformer has 5 outputs .* allowed .*10"
    ):
        plain(data, teacher="tests.models:transformer")
    assert not (data.parent / "cache" / "training").exists()


def test_another_teacher_is_named(data: Path) -> None:
    state = {name: value * 0.5 for name, value in load_model(TINY).module.state_dict().items()}
    from safetensors.torch import save_file

    weights = data.parent / "teacher.safetensors"
    save_file(state, weights)
    own = plain(data, teacher="self", epochs=1)
    other = plain(data, teacher=TINY, teacher_weights=weights, epochs=1)
    assert other.record.teacher == TINY
    assert other.record.curve[0].loss != own.record.curve[0].loss


def test_an_out_that_is_taken_is_refused_before_any_image_is_read(data: Path) -> None:
    out = data.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    data.unlink()
    with pytest.raises(BadInputError, match="is not the folder of a training"):
        plain(data)


def test_an_exported_program_has_no_training_mode(data: Path) -> None:
    program = torch.export.export(load_model(TINY).module, (torch.zeros(1, 3, 32, 32),))
    path = data.parent / "tiny.pt2"
    torch.export.save(program, path)
    with pytest.raises(UnsupportedModelError, match="an exported program has no training mode"):
        plain(data, model=str(path), mean="0.5,0.5,0.5", std="0.25,0.25,0.25", input_size="32")


def test_options_are_checked_first() -> None:
    with pytest.raises(BadOptionError, match="unknown option 'epoch'"):
        train(TINY, epoch=3)


def test_the_public_door_is_the_package_of_its_name(data: Path) -> None:
    import mixport

    result = mixport.train(
        TINY,
        method="plain",
        data=str(data),
        epochs=1,
        batch=8,
        out=data.parent / "door",
        cache=data.parent / "c",
    )
    assert result.path == data.parent / "door" and len(result.record.curve) == 1
    again = mixport.train  # the same after the package was imported for good
    assert callable(again) and again.__name__ == "mixport.train"
