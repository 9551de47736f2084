"""Widths under a budget: what is searched with, and that the rest is chosen with the widths found."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.quantize.algorithms.budget import ChooseUnderBudget
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.budget.auto_widths import learned_bytes
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.choices.scheme import Scheme, SizeBudget
from mixport.records.choices.search import WidthSearch
from mixport.records.errors import SizeBudgetError
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from tests.reconstruction import calibration_of, float_model, seeded

IMAGES, SMALLEST = 4, 2000
LEARNS = cast("Any", SimpleNamespace())
"""Stands for a learner: the search only asks whether there is one."""

Given = tuple[Prepared, ChoiceContext]


class Clamped(nn.Module):
    """Two layers have free widths; the second reads a clamp that a learner may move."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.third, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.second(F.relu6(self.first(x))))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("budget")
    calibration = calibration_of(folder, images=IMAGES)
    scheme = Scheme.parse("auto:0.47:a4")
    prepared = prepare(float_model(seeded(Clamped)), calibration, load_target("ort-cpu"), scheme=scheme)
    batches = CalibrationBatches(model=prepared.model, calibration=calibration)
    context = ChoiceContext(batches=batches, learner=None, progress=SilentProgress())
    return prepared, context


def under(prepared: Prepared, size: int) -> Prepared:
    """The same with another budget."""
    return replace(prepared, scheme=replace(prepared.scheme, budget=SizeBudget(size_bytes=size)))


def search(given: Given, *, size: int, learner: Any = None) -> tuple[Prepared, WidthSearch]:
    """What the inner choice was given, and what was found; nothing else is chosen."""
    prepared, context = given
    seen: list[Prepared] = []

    def inner(now: Prepared, _: ChoiceContext) -> Assignment:
        seen.append(now)
        return Assignment(params={}, widths=now.widths, integers={})

    choose = ChooseUnderBudget(inner=inner, smallest_bytes=SMALLEST)
    found = choose(under(prepared, size), replace(context, learner=learner)).search
    assert found is not None
    (now,) = seen
    return now, found


def bits_of(prepared: Prepared) -> dict[str, int]:
    return {width.name: width.bits for width in prepared.widths.values() if not width.fixed}


def test_the_rest_is_chosen_with_the_widths_found(given: Given) -> None:
    prepared, context = given
    chosen = ChooseUnderBudget(inner=choose_nearest, smallest_bytes=SMALLEST)(prepared, context)
    assert chosen.search is not None
    found = {layer.name: layer.bits for layer in chosen.search.layers}
    assert found == bits_of(replace(prepared, widths=chosen.widths))
    assert sorted(found.values()) == [4, 8]
    plain = choose_nearest(prepared.with_widths(chosen.widths), context)
    assert plain.params == chosen.params
    for node, integers in plain.integers.items():
        np.testing.assert_array_equal(chosen.integers[node].codes, integers.codes)
        assert np.abs(integers.codes.astype(int)).max() <= 2 ** (chosen.widths[node].bits - 1)


def test_sizes_are_the_model_s_and_the_measured_file_s(given: Given) -> None:
    prepared, context = given
    chosen = ChooseUnderBudget(inner=choose_nearest, smallest_bytes=SMALLEST)(prepared, context)
    found = chosen.search
    assert found is not None
    assert found.budget_bytes == int(0.47 * prepared.model.float_bytes)
    assert (found.smallest_bytes, found.images) == (SMALLEST, IMAGES)
    assert SMALLEST <= found.bound_bytes <= found.budget_bytes


@pytest.mark.parametrize(("size", "bits"), [(SMALLEST, {2}), (100 * SMALLEST, {8})])
def test_the_ends_of_the_budget(given: Given, size: int, bits: set[int]) -> None:
    now, found = search(given, size=size)
    assert set(bits_of(now).values()) == bits
    assert found.fits == ((2,) if bits == {2} else (2, 4, 8))


def test_a_learner_needs_room_for_its_steps(given: Given) -> None:
    room = learned_bytes(given[0].plan)
    assert room == 32
    _, found = search(given, size=SMALLEST + room, learner=LEARNS)
    assert (found.smallest_bytes, found.bound_bytes) == (SMALLEST, SMALLEST + room)
    with pytest.raises(
        SizeBudgetError, match=f"the smallest one possible for target ort-cpu takes {SMALLEST + room}"
    ):
        search(given, size=SMALLEST + room - 1, learner=LEARNS)


def test_no_widths_below_the_smallest_file(given: Given) -> None:
    with pytest.raises(SizeBudgetError, match=f"allows a file of {SMALLEST - 1} bytes"):
        search(given, size=SMALLEST - 1)


def test_the_prepared_graph_is_left_as_it_is(given: Given) -> None:
    before = (given[0].graph.code, bits_of(given[0]))
    search(given, size=100 * SMALLEST)
    assert (given[0].graph.code, bits_of(given[0])) == before
    assert set(before[1].values()) == {2}
