"""Weights and biases of a graph's layers as parameters."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixport.train.network.layers import TrainedLayers
from tests.models import repeated
from tests.trained_nets import CPU, LAYERS, Given, given_of


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return given_of(tmp_path_factory.mktemp("layers"))


@pytest.fixture
def layers(given: Given) -> TrainedLayers:
    return TrainedLayers(given.prepared, device=CPU)


def test_every_layer_has_the_model_s_weight_and_bias(given: Given, layers: TrainedLayers) -> None:
    assert layers.names == LAYERS
    assert layers.groups == (1, 1, 1, 2, 1, 1)
    floats = given.model.module.state_dict()
    for number, name in enumerate(LAYERS):
        assert torch.equal(layers.weight[number], floats[f"{name}.weight"])
        assert layers.weight[number].requires_grad
        bias = layers.bias_of(number)
        if name == "narrow":
            assert bias is None and layers.bias[number].shape == (0,)
        else:
            assert bias is not None and torch.equal(bias, floats[f"{name}.bias"])
        assert not layers.centre[number].any() and not layers.centre[number].requires_grad
        assert layers.number(layers.nodes[number]) == number


def test_they_are_copies(given: Given, layers: TrainedLayers) -> None:
    with torch.no_grad():
        layers.weight[1].zero_()
    assert TrainedLayers(given.prepared, device=CPU).weight[1].any()


def test_the_bias_of_inputs_as_they_are(layers: TrainedLayers) -> None:
    number = LAYERS.index("wide")
    weight, bias = layers.weight[number].detach(), layers.bias[number].detach()
    with torch.no_grad():
        layers.centre[number].copy_(torch.arange(float(weight.numel())).view_as(weight) % 7)
    wanted = [
        float(bias[o] - sum(a * b for a, b in zip(weight[o].flatten(), row.flatten(), strict=True)))
        for o, row in enumerate(layers.centre[number])
    ]
    got = layers.bias_of(number, weight)
    assert got is not None
    # Sums of 36 products in another order.
    assert got.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-4)
    centred = layers.bias_of(number)
    assert centred is not None and torch.equal(centred, bias)
    other = layers.bias_of(number, 0 * weight)
    assert other is not None and torch.equal(other, bias), "of the weight that is asked about"


def test_what_is_given_back_belongs_to_inputs_as_they_are(layers: TrainedLayers) -> None:
    number = LAYERS.index("body")
    with torch.no_grad():
        layers.centre[number].fill_(0.25)
    found = layers.give()
    assert found.keys() == {f"{kind}/{name}" for kind in ("weight", "bias") for name in LAYERS}
    weight = layers.weight[number].detach().clone()
    wanted = layers.bias[number].detach() - 0.25 * weight.flatten(1).sum(1)
    torch.testing.assert_close(found["bias/body"], wanted, rtol=1e-5, atol=1e-5)  # sums of 72 in float32
    assert torch.equal(found["weight/body"], weight) and found["bias/narrow"].shape == (0,)
    with torch.no_grad():
        layers.weight[number].add_(1.0)
    assert torch.equal(found["weight/body"], weight), "a copy, not what training goes on with"
    assert not any(value.requires_grad for value in found.values())


def test_layers_that_share_a_weight_have_one_each(tmp_path: Path) -> None:
    layers = TrainedLayers(given_of(tmp_path, module=repeated(1)).prepared, device=CPU)
    wide, other = (layers.names.index(name) for name in ("wide", "other"))
    assert torch.equal(layers.weight[wide], layers.weight[other])
    with torch.no_grad():
        layers.weight[wide].add_(1.0)
    assert not torch.equal(layers.weight[wide], layers.weight[other])
    assert len(set(layers.names)) == len(layers.names) == 6, "the block that is called twice is two layers"
