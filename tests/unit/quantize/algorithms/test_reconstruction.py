"""Learned rounding as a way to choose: what the learner is given, and what is taken from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.algorithms.reconstruction import choose_by_reconstruction
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.learn.reconstruction.reconstruct import Reconstructed
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.search import MlpRecord, Reconstruction
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from tests.reconstruction import calibration_of, float_model, stack

RECORD = Reconstruction(preset="own", iters=7, images=12, seed=3, device="cpu", threads=2, units=())
LEARNED = Decision(where="second", what="codes learned", why="asked for")
MLP = MlpRecord(name="block", layers=("fc1", "fc2"), error_before=0.5, error_after=0.25)


Given = tuple[Prepared, ChoiceContext]


class Learner:
    """Turns every code and doubles every step; remembers its tasks."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def units(self, task: Task) -> Reconstructed:
        self.tasks.append(task)
        return Reconstructed(
            params={name: replace(one, scale=2 * one.scale) for name, one in task.params.items()},
            integers={node: replace(one, codes=-one.codes) for node, one in task.integers.items()},
            record=RECORD,
            decisions=(LEARNED,),
        )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("reconstruction")
    calibration = calibration_of(folder)
    prepared = prepare(
        float_model(stack()), calibration, load_target("ort-cpu"), scheme=Scheme.parse("w8a8"), learned=True
    )
    batches = CalibrationBatches(model=prepared.model, calibration=calibration)
    return prepared, ChoiceContext(batches=batches, learner=None, progress=SilentProgress())


@pytest.fixture
def learner() -> Learner:
    return Learner()


def choose(given: Given, learner: Learner, **changes: Any) -> Assignment:
    """With some fields of the prepared model changed."""
    prepared, context = given
    context = replace(context, learner=cast("Any", learner))
    return choose_by_reconstruction(replace(prepared, **changes), context)


def test_without_a_learner_it_is_our_bug(given: Given) -> None:
    with pytest.raises(InvariantError, match="reconstruction has no learner"):
        choose_by_reconstruction(*given)


def test_it_starts_from_rounding_to_nearest(given: Given, learner: Learner) -> None:
    prepared, context = given
    choose(given, learner)
    start = choose_nearest(prepared, context)
    (task,) = learner.tasks
    assert task.graph is prepared.graph and task.plan is prepared.plan
    assert task.params == start.params and task.widths == start.widths
    assert task.integers.keys() == start.integers.keys()
    for node, integers in start.integers.items():
        np.testing.assert_array_equal(task.integers[node].codes, integers.codes)
        np.testing.assert_array_equal(task.integers[node].scales, integers.scales)


def test_a_task_says_what_the_graph_and_the_target_allow(given: Given, learner: Learner) -> None:
    prepared, _ = given
    coarse = ScaleGrid(power_of_two=True)
    choose(given, learner)
    choose(given, learner, rule=replace(prepared.rule, grid=coarse))
    choose(given, learner, captured=replace(prepared.captured, dynamic_batch=False))
    assert [(task.input_shape, task.grid, task.dynamic_batch) for task in learner.tasks] == [
        ((1, 3, 16, 16), ScaleGrid(), True),
        ((1, 3, 16, 16), coarse, True),
        ((1, 3, 16, 16), ScaleGrid(), False),
    ]


def test_steps_and_codes_are_the_learner_s_and_widths_stay(given: Given, learner: Learner) -> None:
    chosen = choose(given, learner)
    (task,) = learner.tasks
    assert {name: one.scale for name, one in chosen.params.items()} == {
        name: 2 * one.scale for name, one in task.params.items()
    }
    for node, integers in task.integers.items():
        np.testing.assert_array_equal(chosen.integers[node].codes, -integers.codes)
    assert chosen.widths == given[0].widths
    assert chosen.search is None


def test_what_rounding_said_comes_before_what_learning_said(given: Given, learner: Learner) -> None:
    prepared, context = given
    start = choose_nearest(prepared, context)
    assert choose(given, learner).decisions == (*start.decisions, LEARNED)
    assert start.decisions, "a pair bound that changes weights, so that the order shows"


def test_mlps_learned_before_stand_in_the_same_record(given: Given, learner: Learner) -> None:
    assert choose(given, learner).reconstruction == RECORD
    found = choose(given, learner, mlps=(MLP,), mlp_iters=40).reconstruction
    assert found == replace(RECORD, mlps=(MLP,), mlp_iters=40)
