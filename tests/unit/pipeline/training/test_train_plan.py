"""Options of a training settled: rates, epochs, teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixport.pipeline.options.train_options import TrainOptions
from mixport.pipeline.training.train_plan import (
    ADAM_RATE,
    NIPQ_RATE,
    SGD_RATE,
    TrainPlan,
    resolve_training,
)
from mixport.records.errors import BadOptionError, TargetError
from mixport.train.robust.trainee import RobustSettings


def plan(**values: Any) -> TrainPlan:
    return resolve_training(TrainOptions.of({"model": "tests.models:tiny", "device": "cpu", **values}))


@pytest.mark.parametrize(
    ("given", "optimiser", "rate"),
    [
        ({}, "adam", NIPQ_RATE),
        ({"method": "plain"}, "sgd", SGD_RATE),
        ({"optimiser": "sgd"}, "sgd", SGD_RATE),
        ({"method": "symreg", "optimiser": "adam"}, "adam", ADAM_RATE),
        ({"method": "plain", "lr": 0.5}, "sgd", 0.5),
    ],
)
def test_optimiser_and_rate_are_the_method_s(given: dict[str, Any], optimiser: str, rate: float) -> None:
    found = plan(**given).loop
    assert (found.optimiser, found.lr) == (optimiser, rate)


@pytest.mark.parametrize(
    ("given", "rho"),
    [
        ({"sharpness": "sam"}, 0.05),
        ({"sharpness": "asam"}, 0.5),
        ({"sharpness": "asam", "rho": 0.1}, 0.1),
    ],
)
def test_the_radius_is_that_of_its_paper(given: dict[str, Any], rho: float) -> None:
    assert plan(**given).loop.rho == rho


@pytest.mark.parametrize(
    ("given", "noise", "finetune"),
    [
        ({}, 5, 5),
        ({"epochs": 5}, 2, 3),
        ({"epochs": 1}, 0, 1),
        ({"noise_epochs": 10}, 10, 0),
        ({"learn_widths": False}, 0, 10),
    ],
)
def test_nipq_halves_its_epochs(given: dict[str, Any], noise: int, finetune: int) -> None:
    found = plan(**given)
    assert found.nipq is not None and found.robust is None
    assert (found.nipq.noise_epochs, found.nipq.finetune_epochs) == (noise, finetune)
    assert found.target is not None and found.target.name == "ort-cpu"


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("plain", RobustSettings()),
        ("symreg", RobustSettings(symmetry=1.0)),
        ("satnl", RobustSettings(bound=2.0)),
        ("symreg+satnl", RobustSettings(symmetry=1.0, bound=2.0)),
    ],
)
def test_a_robust_method_is_its_words(method: str, wanted: RobustSettings) -> None:
    found = plan(method=method)
    assert found.robust == wanted and found.nipq is None and found.target is None


def test_settings_of_a_robust_method_are_passed_on() -> None:
    found = plan(
        method="symreg+satnl",
        symmetry=0.5,
        symmetry_pairing="2:2",
        bound=3.0,
        kurtosis=0.25,
        regularise_depthwise=True,
    )
    assert found.robust == RobustSettings(
        symmetry=0.5, pairing="2:2", bound=3.0, kurtosis=0.25, depthwise=True
    )


@pytest.mark.parametrize(
    ("given", "itself", "teacher"),
    [
        ({"data": "d.npz"}, False, None),
        ({"data": "d.npz", "teacher": "none"}, False, None),
        ({"data": "d.npz", "teacher": "self"}, True, None),
        ({"data": "d.npz", "teacher": "a:b"}, False, "a:b"),
        ({"data": "noise"}, True, None),
        ({"data": "noise", "teacher": "self"}, True, None),
        ({"data": "noise", "teacher": "a:b"}, False, "a:b"),
    ],
)
def test_who_teaches(given: dict[str, Any], *, itself: bool, teacher: str | None) -> None:
    found = plan(**given)
    assert found.teacher_is_model is itself
    assert (None if found.teacher is None else found.teacher.source) == teacher


def test_weights_of_the_teacher_are_its_own() -> None:
    found = plan(data="d.npz", teacher="a:b", teacher_weights="t.safetensors", weights="w.safetensors")
    assert found.teacher is not None and found.teacher.weights == Path("t.safetensors")
    assert found.model.weights == Path("w.safetensors")


def test_how_the_model_was_opened_is_kept_without_its_weights() -> None:
    found = plan(model_arg={"classes": "5"}, input_size="48", weights="w.safetensors")
    assert found.model_options == {"model_arg": {"classes": "5"}, "input_size": [48, 48]}


def test_the_folder_is_named_by_model_and_method() -> None:
    assert plan(method="symreg+satnl").folder("tiny") == Path("dist/tiny-symreg+satnl")
    assert plan(out="here").folder("tiny") == Path("here")


def test_what_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(TargetError, match="nowhere"):
        plan(target="nowhere")
    with pytest.raises(BadOptionError, match="--budget"):
        plan(budget="small")


def test_amp_is_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadOptionError, match="--amp on cpu, allowed on cuda alone"):
        plan(amp=True)
    monkeypatch.setattr("mixport.pipeline.training.train_plan.resolve_device", lambda asked: asked)
    assert plan(amp=True, device="cuda").loop.amp and not plan(device="cuda").loop.amp
