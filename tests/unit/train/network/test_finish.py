"""From a trained network to integers."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixport.arithmetic.neighbour_pairs import pair_violations
from mixport.quantize.emit.emit import emit
from mixport.train.network.finish import finish
from mixport.train.network.quantised import code_range
from tests.trained_nets import LAYERS, Given, given_of, moved, with_target


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Tests leave its graph as it is."""
    return given_of(tmp_path_factory.mktemp("finish"))


def test_codes_are_the_nearest_ones_of_the_trained_weights(given: Given) -> None:
    network = moved(given.quantised())
    network.centre([given.images], corrected=True)
    made = finish(network, given.prepared)
    changed = {one.where for one in made.decisions}
    assert list(made.integers) == list(given.prepared.widths) and made.widths == given.prepared.widths
    for number, (node, width) in enumerate(given.prepared.widths.items()):
        one, (low, high) = made.integers[node], code_range(width.bits)
        weight = network.layers.weight[number].detach().numpy()
        scales = network.scale[number].detach().numpy()
        assert one.codes.dtype == np.int8 and one.scales.dtype == np.float32
        bias = network.layers.bias_of(number, network.shipped_weight(number))
        if bias is None:
            assert one.bias is None
        else:
            assert one.bias is not None and np.array_equal(one.bias, bias.detach().numpy())
        if width.name in changed:  # 8-bit pairs that could saturate
            assert width.name in {"stem", "head"}
            continue
        assert np.array_equal(one.scales, scales)
        wide = scales.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.array_equal(one.codes, np.clip(np.rint(weight / wide), low, high))
        assert {one.codes.min(), one.codes.max()} & {low, high}, "some are at an end"


def test_codes_are_those_of_the_last_forward_pass(given: Given) -> None:
    network = moved(given.quantised(), seed=5)
    made = finish(network, given.prepared)
    for number, (node, width) in enumerate(given.prepared.widths.items()):
        if width.fixed:
            continue
        one = made.integers[node]
        wide = one.scales.reshape(-1, *[1] * (one.codes.ndim - 1))
        shipped = network.shipped_weight(number).detach().numpy()
        assert np.array_equal(one.codes.astype(np.float32) * wide, shipped)


def test_parameters_are_those_of_the_steps(given: Given) -> None:
    network = moved(given.quantised())
    made = finish(network, given.prepared)
    names = [site.name for site in given.prepared.plan.sites]
    assert list(made.params) == names
    for name, step in zip(names, network.step, strict=True):
        before, now = given.start.params[name], made.params[name]
        assert now.scale == float(step.detach()) == float(np.float32(now.scale))
        assert (now.zero_point, now.qmin, now.qmax) == (before.zero_point, before.qmin, before.qmax)
        assert (now.scale == before.scale) == (not step.requires_grad)


def test_nothing_is_said_where_nothing_happened(given: Given) -> None:
    made = finish(given.quantised(), given.prepared)
    assert {one.where for one in made.decisions} <= {"stem", "head"}
    assert made.reconstruction is None and made.search is None


def test_pairs_of_8_bit_weights_are_kept_within_the_bound(given: Given) -> None:
    network = given.quantised()
    stem = LAYERS.index("stem")
    with torch.no_grad():
        # All codes at 127: two products of 255 * 127 leave int16.
        network.layers.weight[stem].copy_(
            127 * network.scale[stem].view(-1, 1, 1, 1).expand_as(network.layers.weight[stem])
        )
    made = finish(network, given.prepared)
    (said,) = [one for one in made.decisions if one.where == "stem"]
    assert "pairs of neighbouring weights" in said.what
    codes = next(iter(made.integers.values())).codes
    assert not pair_violations(codes, largest_code=255, limit=32767).any()


def test_a_scale_makes_room_for_its_bias(given: Given) -> None:
    network = given.quantised()
    body = LAYERS.index("body")
    with torch.no_grad():
        network.layers.bias[body][2] = 1e8
    made = finish(network, given.prepared)
    (said,) = [one for one in made.decisions if one.where == "body"]
    assert said.what == "weight scale of 1 channels raised" and "int32" in said.why
    one = made.integers[network.layers.nodes[body]]
    x = made.params["stem.a4"].scale
    assert one.bias is not None and abs(float(one.bias[2])) / (x * float(one.scales[2])) <= 2.0**29 * 1.001
    assert not np.array_equal(one.scales[2], network.scale[body].detach().numpy()[2])


def test_what_was_held_is_said(given: Given) -> None:
    network = given.quantised()
    with torch.no_grad():
        network.scale[1][:3] *= 100.0
        network.step[2] *= 100.0
    network.hold()
    made = finish(network, given.prepared)
    said = {one.where: one.why for one in made.decisions if "sixteen times" in one.what}
    assert said == {"weight scales": "3 times", "activation steps": "1 times"}


@pytest.mark.parametrize("way", ["power-of-two", "per-tensor"])
def test_scales_are_on_the_target_s_grid(way: str, tmp_path: Path) -> None:
    coarse = with_target(given_of(tmp_path), way)
    network = moved(coarse.quantised())
    made = finish(network, coarse.prepared)
    grid = coarse.prepared.rule.grid
    for one in made.integers.values():
        assert grid.holds_weights(one.scales)
    assert grid.holds([one.scale for one in made.params.values()])
    record = emit(coarse.prepared, made, coarse.batches, workdir=tmp_path)
    assert len(record.weights) == len(LAYERS), "what is emitted is checked once more"
