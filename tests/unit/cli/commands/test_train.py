"""What mixport train shows, and what it hands on; the training itself is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixport.cli.program import run
from mixport.pipeline.options.train_options import TrainOptions
from mixport.pipeline.training import train_model
from mixport.pipeline.training.train_model import TrainingResult
from mixport.records.choices.trained import EpochRecord, TrainingData, TrainingRecord

Capture = pytest.CaptureFixture[str]


def record(*, labels: bool = True) -> TrainingRecord:
    return TrainingRecord(
        method="nipq",
        model={"name": "tiny", "source": "a:b", "sha256": "ab"},
        teacher=None,
        data=TrainingData(method="x", source="x", sha256="cd", images=39, held_out=4, labels=labels),
        settings={},
        curve=(
            EpochRecord(phase="noise", epoch=0, loss=2.0, held_out=0.25, figures={"weight_bits": 5.0}),
            EpochRecord(phase="fine-tune", epoch=1, loss=0.5, held_out=0.75, figures={"weight_bits": 3.5}),
        ),
        decisions=({"where": "widths", "what": "3 widths lowered", "why": "--budget w3a4"},),
        environment={},
        command="mixport train a:b",
        files={},
    )


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TrainOptions]:
    asked: list[TrainOptions] = []

    def run_training(options: TrainOptions, **others: Any) -> TrainingResult:
        asked.append(options)
        others["note"]("train ...")
        if others["on_start"] is not None:
            others["on_start"]("training   the plan")
        return TrainingResult(path=Path("dist/tiny-nipq"), record=record(labels=options.labelled is not None))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_model, "run_training", run_training)
    return asked


def test_options_of_the_line_go_over_those_of_the_file(given: list[TrainOptions]) -> None:
    Path("mixport.toml").write_text('[train]\nmethod = "plain"\nepochs = 4\n[build]\nscheme = "w2a4"\n')
    assert run(["train", "a:b", "--epochs", "6", "--data", "d.npz"]) == 0
    (one,) = given
    assert (one.model, one.method, one.epochs, one.data) == ("a:b", "plain", 6, "d.npz")


def test_switches_have_both_ways(given: list[TrainOptions]) -> None:
    assert run(["train", "--no-learn-widths", "--regularise-depthwise", "--method", "plain"]) == 2
    assert run(["train", "--no-learn-widths"]) == 0
    assert run(["train", "--learn-widths"]) == 0
    assert [one.learn_widths for one in given] == [False, True]


@pytest.mark.parametrize(
    ("data", "watched"), [("d.npz", "75.00 % accuracy"), ("noise", "75.00 % agreement with the teacher")]
)
def test_the_table_is_of_the_last_epoch(data: str, watched: str, capsys: Capture) -> None:
    assert run(["train", "--data", data]) == 0
    captured = capsys.readouterr()
    for words in ("dist/tiny-nipq", "nipq, 2 epochs on 39 images", "0.5", f"{watched} on 4 images", "3.5"):
        assert words in captured.out
    assert "weight bits" in captured.out and "2.0" not in captured.out
    for words in (
        "training   the plan",
        "widths: 3 widths lowered (--budget w3a4)",
        "next: mixport build a:b --trained dist/tiny-nipq",
    ):
        assert words in captured.err


def test_json_is_the_record_and_the_folder(capsys: Capture) -> None:
    assert run(["train", "--data", "d.npz", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"path": "dist/tiny-nipq", **json.loads(record().text())}
    assert "the plan" not in captured.err


def test_quiet_says_nothing_on_the_way(capsys: Capture) -> None:
    assert run(["train", "--data", "d.npz", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "dist/tiny-nipq" in captured.out


def test_a_mistake_is_answered_before_any_work(given: list[TrainOptions], capsys: Capture) -> None:
    assert run(["train", "--epochs", "0"]) == 2
    assert "error: --epochs: " in capsys.readouterr().err
    assert given == []
