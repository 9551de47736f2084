"""The choice of widths on a real graph: budgets kept by the bound, better ones with more room, and refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mixport.errors import SizeBudgetError
from mixport.progress import SilentProgress
from mixport.quantize.auto_widths import Sizes, choose_widths
from mixport.quantize.plan import make_plan
from mixport.quantize.sensitivity import RoundWeight, nearest
from mixport.quantize.widths import LayerWidth, scheme_widths
from mixport.quantspec import Scheme
from mixport.search_records import WidthSearch
from mixport.targets import Target, load_target
from tests.unit.quantize.conftest import Capture
from tests.wide_model import wide

SMALLEST, LAYER = 10_000, 16 * 16 * 9
"""A made-up smallest file, and the weights of each of the four free layers."""


def search(
    captured: Capture, budget: int, *, target: Target | None = None, rounding: RoundWeight = nearest
) -> tuple[list[LayerWidth], WidthSearch]:
    graph = captured(wide(), size=32).graph
    scheme = Scheme.parse(f"auto:{budget}B")
    batch = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    widths, found = choose_widths(
        graph,
        scheme_widths(graph, make_plan(graph, scheme, stream_bits=16), scheme),
        lambda: iter([batch]),
        scheme=scheme,
        target=target or load_target("ort-cpu"),
        sizes=Sizes(smallest=SMALLEST, floats=4 * 12_000),
        images=8,
        rounding=rounding,
        progress=SilentProgress(),
    )
    return list(widths.values()), found


def alone(found: WidthSearch, exponent: float) -> float:
    return sum(option.loss**exponent for layer in found.layers for option in layer.options if option.bits == layer.bits)


def test_more_room_is_never_worse_than_predicted_and_the_bound_keeps_the_budget(captured: Capture) -> None:
    found = [search(captured, SMALLEST + extra)[1] for extra in (0, 600, 1200, 2400, 5000, 10_000)]
    assert all(one.bound_bytes <= one.budget_bytes for one in found)
    for before, after in itertools.pairwise(found):  # what is measured jointly need not fall with every byte; each programme's sum does
        if before.exponent == after.exponent is not None:
            assert alone(after, after.exponent) <= alone(before, before.exponent)
    assert any(a.exponent == b.exponent is not None for a, b in itertools.pairwise(found))
    assert all(one.loss <= min(one.uniform[bits] for bits in one.fits) for one in found)
    assert found[-1].loss < found[0].loss == found[0].uniform[2]
    assert found[-1].bound_bytes == SMALLEST + 4 * (LAYER * 6 // 8 + 8)
    assert [one.fits for one in (found[0], found[-1])] == [(2,), (2, 4, 8)]


def test_every_free_layer_says_what_it_costs_and_edges_keep_theirs(captured: Capture) -> None:
    widths, found = search(captured, SMALLEST + 1200)
    assert [one.fixed for one in widths] == [True, False, False, False, False, True]
    assert [one.name for one in widths if not one.fixed] == [layer.name for layer in found.layers]
    assert {one.bits for one in widths if one.fixed} == {8}
    for one, layer in zip(widths[1:-1], found.layers, strict=True):
        assert one.bits == layer.bits
        assert one.reason.endswith(f"{one.bits} bits within the budget of {SMALLEST + 1200} bytes")
        assert f"4 bits {layer.options[1].loss:.2g}" in one.reason
        assert [(option.bits, option.file_bytes) for option in layer.options] == [(2, LAYER // 4), (4, LAYER // 2), (8, LAYER)]


def test_the_layer_that_a_rounding_breaks_gets_the_room(captured: Capture) -> None:
    def breaks_the_third(layer: torch.fx.Node, weight: np.ndarray, bits: int) -> np.ndarray:
        return np.zeros_like(weight) if layer.name == "conv2d_3" and bits == 2 else weight

    widths, _ = search(captured, SMALLEST + 600, rounding=breaks_the_third)
    assert [one.bits for one in widths] == [8, 2, 2, 4, 2, 8]


def test_three_bits_are_on_offer_where_four_are_not(captured: Capture) -> None:
    target = load_target("ort-cpu")
    target = target.model_copy(update={"weights": target.weights.model_copy(update={"bits": (2, 3, 8)})})
    assert [option.bits for option in search(captured, SMALLEST, target=target)[1].layers[0].options] == [2, 3, 8]


def test_a_budget_below_the_smallest_file_names_both_ends(captured: Capture) -> None:
    largest = SMALLEST + 4 * (LAYER * 6 // 8 + 8)
    with pytest.raises(SizeBudgetError, match=rf"takes {SMALLEST} \(0.2083 of .*\), with 8-bit weights {largest}$") as caught:
        search(captured, SMALLEST - 1)
    assert caught.value.exit_code == 1
    assert caught.value.hint == "mixport build --scheme auto:10KB ..."
