"""What each method leaves, from a job made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixport.pipeline.options.train_options import TrainOptions
from mixport.pipeline.stages import StageContext, StageLog
from mixport.pipeline.training.methods import Job, run_nipq, run_robust
from mixport.pipeline.training.train_plan import resolve_training
from mixport.quantize.learn.loop.checkpoints import NoCheckpoints
from mixport.records.choices.scheme import Scheme
from mixport.records.errors import InvariantError
from mixport.records.progress import SilentProgress
from mixport.storage.store import Store
from mixport.train.loop.losses import Objective
from tests.reconstruction import float_model, stack
from tests.unit.train.toys import toy_source


def job(folder: Path, **options: Any) -> Job:
    source = toy_source(side=16, classes=5)
    given = {"model": "tests:small", "data": "d.npz", "epochs": 1, "device": "cpu", **options}
    return Job(
        plan=resolve_training(TrainOptions.of(given)),
        model=float_model(stack()),
        data=source.data,
        source=source,
        objective=Objective(teacher=None),
        checkpoints=NoCheckpoints(),
        context=StageContext(
            store=Store(folder / "cache"), progress=SilentProgress(), log=StageLog(lambda _: None)
        ),
        workdir=folder,
    )


@pytest.mark.parametrize("method", ["plain", "satnl"])
def test_a_robust_method_leaves_weights_alone(method: str, tmp_path: Path) -> None:
    given = job(tmp_path, method=method)
    before = {name: value.clone() for name, value in given.model.module.state_dict().items()}
    found = run_robust(given)
    assert (found.sites, found.integers, found.scheme) == (None, None, None)
    assert found.weights.keys() == before.keys()
    assert any(not torch.equal(value, before[name]) for name, value in found.weights.items())
    assert [one.phase for one in found.curve] == [method]
    told = [(one.where, one.what.split(" bounded")[0]) for one in found.decisions]
    assert told == ([("weights", "weights of 4 layers")] if method == "satnl" else [])


def test_nipq_leaves_weights_widths_and_integers(tmp_path: Path) -> None:
    found = run_nipq(job(tmp_path, budget="w3a4"))
    assert found.sites is not None and found.integers is not None and found.scheme is not None
    assert set(found.weights) >= {"weight/first", "weight/second", "weight/third", "weight/head"}
    assert set(found.sites.layers) == {"first", "second", "third", "head"}
    assert found.sites.source == "nipq w3a4"
    assert {name for name in found.integers if name.startswith("codes/")} == {
        f"codes/{name}" for name in found.sites.layers
    }
    for name, layer in found.sites.layers.items():
        codes = found.integers[f"codes/{name}"]
        assert codes.dtype == torch.int8 and int(codes.abs().max()) <= 2 ** (layer.bits - 1)
    assert Scheme(**found.scheme).spelling == "nipq:w3a4"
    statistics = np.load(tmp_path / "statistics.npy")
    source = toy_source(side=16, classes=5)
    np.testing.assert_array_equal(statistics, source.data.images[source.data.order])


@pytest.mark.parametrize(("run", "method"), [(run_nipq, "plain"), (run_robust, "nipq")])
def test_settings_of_the_other_method_are_our_bug(run: Any, method: str, tmp_path: Path) -> None:
    with pytest.raises(InvariantError, match="no settings of"):
        run(job(tmp_path, method=method))


def test_a_thousand_images_are_enough_for_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixport.pipeline.training.methods._STATISTICS_IMAGES", 5)
    given = job(tmp_path, budget="w3a4")
    run_nipq(replace(given, objective=Objective(teacher=None)))
    statistics = np.load(tmp_path / "statistics.npy")
    wanted = given.data.images[given.data.order[[0, 4, 9, 14, 19]]]
    np.testing.assert_array_equal(statistics, wanted)
