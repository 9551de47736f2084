"""Epochs, rates, averages, and going on after an interruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixport.quantize.learn.loop.checkpoints import NoCheckpoints
from mixport.quantize.prepared import Assignment
from mixport.records.choices.scheme import DEFAULT_EDGE_CONVENTION
from mixport.records.errors import TrainingError
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.train.data.batches import BatchSource
from mixport.train.loop.loop import Phase, Trained, train
from mixport.train.loop.losses import Objective
from mixport.train.loop.settings import LoopSettings
from mixport.train.loop.trainee import Trainee
from mixport.train.nipq.budget import Budget
from mixport.train.nipq.method import Nipq, NipqSettings
from mixport.train.robust.trainee import RobustSettings, RobustTrainee
from tests.reconstruction import calibration_of, float_model, stack
from tests.unit.train.toys import Folders, Scalar, Told, toy_net, toy_source

CPU = torch.device("cpu")
STEPS = 5
"""Of an epoch of `toy_source`."""
RATE: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.0}

Penalty = Callable[[Tensor], Tensor]


def itself(p: Tensor) -> Tensor:
    """Slope 1: AdamW then moves p by the rate of each step."""
    return p * 1.0


def one(penalty: Penalty = itself, *, start: float = 1.0, factor: float = 1.0) -> Callable[..., Scalar]:
    return lambda _: Scalar(start, penalty, factor=factor)


def run(
    phases: list[Phase],
    settings: LoopSettings,
    *,
    checkpoints: Folders | NoCheckpoints | None = None,
    source: BatchSource | None = None,
    objective: Objective | None = None,
    progress: Told | None = None,
) -> Trained:
    return train(
        phases,
        source or toy_source(),
        objective or Objective(teacher=None),
        settings,
        checkpoints=checkpoints or NoCheckpoints(),
        progress=progress or SilentProgress(),
    )


def scalar_of(trained: Trained) -> Scalar:
    assert isinstance(trained.trainee, Scalar)
    return trained.trainee


def rates(trainee: Scalar, *, start: float = 1.0) -> list[float]:
    seen = [start, *trainee.seen]
    return [before - after for before, after in pairwise(seen)]


def test_rates_rise_and_fall_by_half_a_cosine_in_each_phase() -> None:
    adam = LoopSettings(optimiser="adam", warmup_epochs=1.0, **RATE)
    made: list[Scalar] = []

    def second(previous: Trainee | None) -> Scalar:
        assert isinstance(previous, Scalar)
        made.append(previous)
        return Scalar(1.0, itself, factor=0.5)

    phases = [
        Phase(name="first", epochs=3, make=one()),
        Phase(name="second", epochs=2, make=second, lr_factor=0.1),
    ]
    trained = run(phases, adam)
    # A tenth to the whole in the five steps of the warm-up, then down to a thousandth in ten.
    rising = [0.01 * (0.1 + 0.9 * step / 5) for step in range(5)]
    falling = [0.01 * (1e-3 + 0.999 * (1 + math.cos(math.pi * step / 10)) / 2) for step in range(10)]
    # p is near 1, where float32 has steps of 2 ** -24: a difference of two is right within 2 ** -23.
    assert rates(made[0]) == pytest.approx([*rising, *falling], abs=2.0**-23)
    # The same in a later phase; its own factor, and that of the group.
    later = [0.0005 * (0.1 + 0.9 * step / 5) for step in range(5)]
    later += [0.0005 * (1e-3 + 0.999 * (1 + math.cos(math.pi * step / 5)) / 2) for step in range(5)]
    assert rates(scalar_of(trained)) == pytest.approx(later, abs=2.0**-23)


def test_sgd_has_nesterov_momentum_and_decays_what_it_is_told_to() -> None:
    settings = LoopSettings(optimiser="sgd", lr=0.01, weight_decay=0.5)
    trained = run([Phase(name="only", epochs=1, make=one())], settings)
    p, momentum, wanted = 1.0, 0.0, list[float]()
    for step in range(STEPS):
        rate = 0.01 * (1e-3 + 0.999 * (1 + math.cos(math.pi * step / STEPS)) / 2)
        gradient = 1.0 + 0.5 * p
        momentum = 0.9 * momentum + gradient
        p -= rate * (gradient + 0.9 * momentum)
        wanted.append(p)
    assert scalar_of(trained).seen == pytest.approx(wanted, abs=STEPS * 2.0**-23)


def test_a_short_phase_warms_up_in_its_first_half() -> None:
    adam = LoopSettings(optimiser="adam", warmup_epochs=1.0, **RATE)
    phases = [
        Phase(name="none", epochs=0, make=one()),
        Phase(name="next", epochs=1, make=one()),
    ]
    trained = run(phases, adam)
    assert STEPS == 5, "two steps of warm-up, three of the cosine"
    wanted = [0.01 * share for share in (0.1, 0.55)]
    wanted += [0.01 * (1e-3 + 0.999 * (1 + math.cos(math.pi * step / 3)) / 2) for step in range(3)]
    assert rates(scalar_of(trained)) == pytest.approx(wanted, abs=2.0**-23)
    assert [epoch.phase for epoch in trained.curve] == ["next"]


def test_the_average_is_watched_and_takes_the_place_of_the_parameters_at_the_end() -> None:
    settings = LoopSettings(optimiser="adam", ema=0.8, **RATE)
    whole = scalar_of(run([Phase(name="only", epochs=2, make=one())], settings))
    plain = scalar_of(run([Phase(name="only", epochs=2, make=one())], LoopSettings(optimiser="adam", **RATE)))
    assert whole.seen == plain.seen, "the training itself does not see the average"
    average, wanted = 1.0, list[float]()
    for p in plain.seen:
        average = 0.8 * average + 0.2 * p
        wanted.append(average)
    # Ten averages, each rounded to float32 near 1.
    assert set(whole.shown) <= {whole.shown[0], whole.shown[-1]}
    assert whole.shown == pytest.approx([wanted[STEPS - 1], wanted[-1]], abs=10 * 2.0**-23)
    assert float(whole.p.detach()) == whole.shown[-1]
    assert plain.shown == [plain.seen[STEPS - 1], plain.seen[-1]]


def test_the_next_phase_gets_the_average() -> None:
    got: list[float] = []

    def second(previous: Trainee | None) -> Scalar:
        assert isinstance(previous, Scalar)
        got.append(float(previous.p.detach()))
        return previous

    settings = LoopSettings(optimiser="adam", ema=0.8, **RATE)
    phases = [Phase(name="a", epochs=1, make=one()), Phase(name="b", epochs=1, make=second)]
    trainee = scalar_of(run(phases, settings))
    assert got == [trainee.shown[0]] and got[0] > trainee.seen[STEPS - 1]


def test_the_curve_says_loss_and_figures_of_each_epoch() -> None:
    settings = LoopSettings(optimiser="adam", lr=0.01, weight_decay=0.0)
    trained = run([Phase(name="only", epochs=2, make=one())], settings)
    assert scalar_of(trained).seen[-1] != 1.0, "the penalty moves"
    for number, epoch in enumerate(trained.curve):
        assert (epoch.phase, epoch.epoch) == ("only", number)
        assert epoch.loss == pytest.approx(math.log(3), abs=1e-6), "of the data, without the penalty"
    noises = [epoch.figures["noise"] for epoch in trained.curve]
    assert len(set(noises)) == 2, "each epoch has a generator of its own"
    other = run([Phase(name="only", epochs=2, make=one())], LoopSettings(optimiser="adam", seed=1, **RATE))
    assert not set(noises) & {epoch.figures["noise"] for epoch in other.curve}


@pytest.mark.parametrize(("label", "share"), [(0, 1.0), (1, 0.0)])
def test_held_out_is_the_share_of_right_labels(label: int, share: float) -> None:
    source = toy_source()
    assert source.data.labels is not None
    source.data.labels[source.data.held_out] = label  # Scalar always says class 0
    trained = run([Phase(name="only", epochs=1, make=one())], LoopSettings(), source=source)
    assert trained.curve[0].held_out == share


def test_without_labels_held_out_is_agreement_with_the_teacher() -> None:
    teacher = toy_net()
    source = toy_source(60, labels=False)
    settings = LoopSettings(lr=1e-9, weight_decay=0.0)

    def make(_: object) -> RobustTrainee:
        return RobustTrainee(teacher, RobustSettings(), device=CPU)

    objective = Objective(teacher=teacher)
    (batch,) = source.held_out()
    answers = teacher(batch.images).argmax(1)
    phases = [Phase(name="only", epochs=1, make=one())]
    share = float((answers == 0).float().mean())
    constant = run(phases, settings, source=source, objective=objective).curve[0].held_out
    assert constant == share
    # Norms follow the images by a tenth a step, or it would agree wholly: learned weights do not move here.
    found = run([Phase(name="only", epochs=1, make=make)], settings, source=source, objective=objective)
    assert 0.0 <= found.curve[0].held_out <= 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named_by_step_and_epoch(bad: float, tmp_path: Path) -> None:
    calls = 0

    def penalty(p: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return p * (bad if calls == STEPS + 3 else 1.0)

    kept = Folders(tmp_path / "kept")
    settings = LoopSettings(optimiser="adam", lr=0.02, weight_decay=0.0)
    phases = [Phase(name="noise", epochs=3, make=one(penalty))]
    with pytest.raises(TrainingError, match=rf"the loss is {bad} in step 2 of epoch 1 \(noise\)") as caught:
        run(phases, settings, checkpoints=kept)
    assert caught.value.hint == "a smaller --lr than 0.02"
    assert kept.names() == ["epoch-0"], "the epoch that failed is not kept"


def test_no_phase_is_our_bug() -> None:
    with pytest.raises(ValueError, match="no phase"):
        run([], LoopSettings())


# Interrupted and resumed.


def robust(_: object) -> RobustTrainee:
    settings = RobustSettings(symmetry=1.0, bound=2.0, kurtosis=0.1, refresh=3)
    return RobustTrainee(toy_net(), settings, device=CPU)


def state(trained: Trained) -> dict[str, Tensor]:
    return dict(trained.trainee.module.state_dict())


def assert_same(found: Trained, wanted: Trained) -> None:
    assert found.curve == wanted.curve
    one, other = state(found), state(wanted)
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert torch.equal(one[name], value), name


LOOPS: dict[str, dict[str, Any]] = {
    "sgd": {"optimiser": "sgd", "lr": 0.05, "warmup_epochs": 0.5},
    "adam": {"optimiser": "adam", "lr": 0.01},
    "sgd-ema": {"optimiser": "sgd", "lr": 0.05, "ema": 0.7},
    "adam-asam-ema": {"optimiser": "adam", "lr": 0.01, "ema": 0.7, "sharpness": "asam", "rho": 0.5},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_broken_off_after_any_epoch_it_goes_on_to_the_same_bits(loop: str, tmp_path: Path) -> None:
    settings = LoopSettings(weight_decay=1e-2, **LOOPS[loop])
    whole = Folders(tmp_path / "whole")
    source = toy_source(mix="mixup")
    phases = [Phase(name="a", epochs=2, make=robust), Phase(name="b", epochs=1, make=lambda last: last)]  # pyright: ignore[reportArgumentType]
    wanted = run(phases, settings, checkpoints=whole, source=source)
    assert whole.names() == ["epoch-0", "epoch-1", "epoch-2"]
    for done in (1, 2, 3):
        torch.manual_seed(done)  # a resumed process has another global state
        kept = whole.only(whole.names()[:done], tmp_path / f"{done}")
        told = Told()
        found = run(phases, settings, checkpoints=kept, source=source, progress=told)
        assert_same(found, wanted)
        assert (told.total, told.done, told.reused) == (3 * STEPS, 3 * STEPS, done * STEPS)
        for path in whole.root.rglob("*.*"):
            assert (kept.root / path.relative_to(whole.root)).read_bytes() == path.read_bytes()


def test_broken_off_within_an_epoch_it_goes_on_after_the_one_before(tmp_path: Path) -> None:
    settings = LoopSettings(lr=0.05)
    phases = [Phase(name="only", epochs=3, make=robust)]
    wanted = run(phases, settings)
    kept = Folders(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        run(phases, settings, checkpoints=kept, progress=Told(most=STEPS + 2))
    assert kept.names() == ["epoch-0"]
    told = Told()
    assert_same(run(phases, settings, checkpoints=kept, progress=told), wanted)
    assert told.reused == STEPS


class NipqRun:
    """NIPQ on a small model, with checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, float_model(stack())
        self.calibration = calibration_of(folder)

    def method(self) -> Nipq:
        settings = NipqSettings(
            budget=Budget.parse("w3a4"),
            noise_epochs=2,
            finetune_epochs=2,
            edge_convention=DEFAULT_EDGE_CONVENTION,
        )
        return Nipq(
            model=self.model,
            target=load_target("ort-cpu"),
            calibration=self.calibration,
            settings=settings,
            workdir=self.folder,
            checkpoints=NoCheckpoints(),
            progress=SilentProgress(),
            batch=4,
            steps=2,
        )

    def train(self, kept: Folders, told: Told) -> tuple[Nipq, Trained, Assignment]:
        method = self.method()
        trained = run(
            method.phases(),
            LoopSettings(optimiser="adam", lr=1e-3, ema=0.5),
            checkpoints=kept,
            source=toy_source(side=16, classes=5),
            objective=Objective(teacher=self.model.module),
            progress=told,
        )
        return method, trained, method.assignment(trained.trainee)


@pytest.fixture(scope="module")
def whole_nipq(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[NipqRun, Folders, Nipq, Trained, Assignment]:
    folder = tmp_path_factory.mktemp("nipq")
    runs, kept = NipqRun(folder), Folders(folder / "kept")
    return (runs, kept, *runs.train(kept, Told()))


@pytest.mark.parametrize(("done", "phase"), [(1, "noise"), (3, "fine-tune")])
def test_nipq_goes_on_in_both_phases_to_the_same_integers(
    done: int,
    phase: str,
    whole_nipq: tuple[NipqRun, Folders, Nipq, Trained, Assignment],
    tmp_path: Path,
) -> None:
    runs, kept, method, wanted, assignment = whole_nipq
    assert [epoch.phase for epoch in wanted.curve] == ["noise", "noise", "fine-tune", "fine-tune"]
    assert wanted.curve[done].phase == phase
    told = Told()
    names = [f"epoch-{number}" for number in range(done)]
    again, found, resumed = runs.train(kept.only(names, tmp_path / "kept"), told)
    assert told.reused == done * STEPS
    assert_same(found, wanted)
    assert again.decisions == method.decisions
    assert resumed.params == assignment.params
    for one, other in zip(resumed.integers.values(), assignment.integers.values(), strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.scales, other.scales)
        assert (one.bias is None) == (other.bias is None)
        if one.bias is not None and other.bias is not None:
            np.testing.assert_array_equal(one.bias, other.bias)
