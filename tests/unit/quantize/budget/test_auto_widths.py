"""The choice of widths on a real graph: budgets kept by the bound, better ones with more room, and
refusals.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixport.lower import lower
from mixport.quantize.budget.auto_widths import Sizes, choose_widths, learned_bytes, levelling_scheme
from mixport.quantize.budget.sensitivity import RoundWeight, round_to_nearest
from mixport.quantize.quantizer import quantize
from mixport.quantize.sites.planner import make_plan
from mixport.quantize.sites.widths import LayerWidth, scheme_widths
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.search import WidthSearch
from mixport.records.errors import SizeBudgetError
from mixport.records.progress import SilentProgress
from mixport.records.targets import Target, load_target
from tests.reconstruction import DEFAULT, changed, float_model, seeded, task_of
from tests.unit.quantize.conftest import Capture
from tests.wide_model import wide

SMALLEST, LAYER = 10_000, 16 * 16 * 9
"""A made-up smallest file, and the weights of each of the four free layers."""


def search(
    captured: Capture,
    budget: int,
    *,
    target: Target | None = None,
    rounding: RoundWeight = round_to_nearest,
    suffix: str = "",
    learned: int = 0,
) -> tuple[list[LayerWidth], WidthSearch]:
    graph = captured(wide(), size=32).graph
    scheme = Scheme.parse(f"auto:{budget}B{suffix}")
    batch = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    widths, found = choose_widths(
        graph,
        scheme_widths(graph, make_plan(graph, scheme, stream_bits=16), scheme),
        lambda: iter([batch]),
        scheme=scheme,
        target=target or load_target("ort-cpu"),
        sizes=Sizes(smallest=SMALLEST, floats=4 * 12_000, learned=learned),
        images=8,
        rounding=rounding,
        progress=SilentProgress(),
    )
    return list(widths.values()), found


def alone(found: WidthSearch, exponent: float) -> float:
    return sum(
        option.loss**exponent
        for layer in found.layers
        for option in layer.options
        if option.bits == layer.bits
    )


def test_more_room_is_never_worse_than_predicted_and_the_bound_keeps_the_budget(captured: Capture) -> None:
    found = [search(captured, SMALLEST + extra)[1] for extra in (0, 600, 1200, 2400, 5000, 10_000)]
    assert all(one.bound_bytes <= one.budget_bytes for one in found)
    for before, after in itertools.pairwise(
        found
    ):  # what is measured jointly need not fall with every byte; each programme's sum does
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
        assert [(option.bits, option.file_bytes) for option in layer.options] == [
            (2, LAYER // 4),
            (4, LAYER // 2),
            (8, LAYER),
        ]


def test_the_layer_that_a_rounding_breaks_gets_the_room(captured: Capture) -> None:
    def breaks_the_third(layer: torch.fx.Node, weight: np.ndarray, bits: int) -> np.ndarray:
        return np.zeros_like(weight) if layer.name == "conv2d_3" and bits == 2 else weight

    widths, _ = search(captured, SMALLEST + 600, rounding=breaks_the_third)
    assert [one.bits for one in widths] == [8, 2, 2, 4, 2, 8]


def test_three_bits_are_on_offer_where_four_are_not(captured: Capture) -> None:
    target = load_target("ort-cpu")
    target = target.model_copy(update={"weights": target.weights.model_copy(update={"bits": (2, 3, 8)})})
    assert [option.bits for option in search(captured, SMALLEST, target=target)[1].layers[0].options] == [
        2,
        3,
        8,
    ]


def test_a_budget_below_the_smallest_file_names_both_ends(captured: Capture) -> None:
    largest = SMALLEST + 4 * (LAYER * 6 // 8 + 8)
    with pytest.raises(
        SizeBudgetError, match=rf"takes {SMALLEST} \(0.2083 of .*\), with 8-bit weights {largest}$"
    ) as caught:
        search(captured, SMALLEST - 1)
    assert caught.value.exit_code == 1
    assert caught.value.hint == "mixport build --scheme auto:10KB ..."
    with pytest.raises(SizeBudgetError) as caught:
        search(captured, SMALLEST - 1, suffix=":a4")
    assert caught.value.hint == "mixport build --scheme auto:10KB:a4 ..."


def test_what_learned_steps_may_add_is_kept_free(captured: Capture) -> None:
    with pytest.raises(SizeBudgetError, match=f"takes {SMALLEST + 64} "):
        search(captured, SMALLEST + 63, learned=64)
    _, found = search(captured, SMALLEST + 64, learned=64)
    assert (found.smallest_bytes, found.bound_bytes) == (SMALLEST, SMALLEST + 64)


def test_a_layer_that_breaks_at_two_bits_gets_others_and_the_record_stays_finite(captured: Capture) -> None:
    def breaks_the_third(layer: torch.fx.Node, weight: np.ndarray, bits: int) -> np.ndarray:
        return (
            np.full_like(weight, np.nan)
            if layer.name == "conv2d_3" and bits == 2
            else round_to_nearest(layer, weight, bits)
        )

    widths, found = search(captured, SMALLEST + 1200, rounding=breaks_the_third)
    assert widths[3].bits > 2
    options = [option.loss for layer in found.layers for option in layer.options]
    finite = [*options, *found.uniform.values(), found.loss, found.predicted]
    assert np.isfinite(finite).all()
    assert (
        found.uniform[2]
        == max(finite)
        == 4 * max(value for value in (*options, *found.uniform.values()) if value < found.uniform[2])
    )


class Clipped(nn.Module):
    """Relu6 behind each of five layers, all of them full: calibrated alike, their codes end alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5)])
        self.head = nn.Linear(8, 5)
        for layer in self.layers:
            layer.weight *= 20.0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.clamp(layer(x), 0.0, 6.0)
        return self.head(x.mean((2, 3)))


def test_learned_steps_add_no_more_than_the_room_kept_for_them(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8))
    calibration = CalibrationSet(
        images_path=tmp_path / "images.npy", count=8, method="images", recipe_key="", content_sha256=""
    )
    task, _ = task_of(seeded(Clipped), tmp_path)
    model, target = float_model(seeded(Clipped)), load_target("ort-cpu")

    def built(reconstruction: ReconstructionOptions | None) -> tuple[int, set[int]]:
        scheme = Scheme.parse("w2a4")
        made = quantize(
            model, calibration, target, scheme=scheme, reconstruction=reconstruction, workdir=tmp_path
        )
        file = lower(made, target, workdir=tmp_path).model_path
        return file.stat().st_size, {site.params.qmax for site in made.activations}

    smallest, ends = built(None)
    size, learned_ends = built(ReconstructionOptions(preset=changed(DEFAULT, step_lr=0.2), iters=20))
    assert len(learned_ends) > len(ends), "the case is the one meant"
    assert smallest < size <= smallest + learned_bytes(task.plan)


@pytest.mark.parametrize(
    ("scheme", "target", "bits"),
    [
        ("w2a4", "ort-cpu", 2),
        ("auto:0.1", "ort-cpu", 4),
        ("auto:0.1:a4", "ort-cpu", 4),
        ("auto:1.0", "onnx-int8", 8),
    ],
)
def test_norms_are_levelled_for_the_middle_width_under_a_budget(scheme: str, target: str, bits: int) -> None:
    asked = Scheme.parse(scheme, edge_bits=6)
    found = levelling_scheme(asked, load_target(target))
    assert (found.weight_bits, found.activation_bits, found.edge_bits) == (bits, asked.activation_bits, 6)
