"""NIPQ's two phases as the loop sees them."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from mixport.train.loop.trainee import Rates, Trainee
from mixport.train.network.block_distance import BlockDistance
from mixport.train.network.quantised import QuantisedNetwork
from mixport.train.nipq.budget import Budget, excess
from mixport.train.nipq.costs import costs_of
from mixport.train.nipq.network import NoisyNetwork
from mixport.train.nipq.trainees import FinetuneTrainee, NoiseTrainee, describe_widths
from tests.trained_nets import CPU, Given, given_of


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Tests leave its graph as it is."""
    return given_of(tmp_path_factory.mktemp("trainees"))


def noise_of(given: Given, network: NoisyNetwork, *, budget: str = "w4a4", pull: float = 1.0) -> NoiseTrainee:
    costs = costs_of(given.prepared)
    return NoiseTrainee(network, budget=Budget.parse(budget), costs=costs, pull=pull, batch=12, steps=6)


def finetune_of(given: Given) -> FinetuneTrainee:
    return FinetuneTrainee(given.quantised(), figures={"gbop": 1.5})


def rates_of(groups: list[Rates], module: nn.Module) -> dict[str, tuple[float, float]]:
    """(rate, or factor of the training's, decay) of each parameter by name, which has one rate alone."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = [
        (names[id(one)], (group.rate or group.factor, group.decay))
        for group in groups
        for one in group.parameters
    ]
    assert max(Counter(name for name, _ in found).values()) == 1
    return dict(found)


def test_every_parameter_of_the_noise_phase_moves_at_its_rate(given: Given) -> None:
    network = given.noisy()
    found = rates_of(noise_of(given, network).groups(weight_decay=0.25), network)
    wanted: dict[str, tuple[float, float]] = {}
    for name, _ in network.named_parameters():
        if name.startswith("layers.weight"):
            wanted[name] = (1.0, 0.25)
        elif name.startswith("layers.bias"):
            wanted[name] = (1.0, 0.0)
        elif name.startswith(("bound", "interval")):
            wanted[name] = (0.1, 0.0)
        elif not name.startswith("layers.centre"):
            wanted[name] = (1.0, 0.0)  # 6 units of a raw width in the phase's 6 steps
    assert found == wanted
    assert {"widths.raw", "site_widths.raw"} <= found.keys()


def test_every_parameter_of_the_fine_tune_moves_at_its_rate(given: Given) -> None:
    trainee = finetune_of(given)
    network: QuantisedNetwork = trainee.network
    found = rates_of(trainee.groups(weight_decay=0.25), network)
    kinds = {name.rpartition(".")[0]: rate for name, rate in found.items()}
    assert kinds == {
        "layers.weight": (1.0, 0.25),
        "layers.bias": (1.0, 0.0),
        "scale": (0.1, 0.0),
        "step": (0.1, 0.0),
    }
    assert len(found) == sum(not name.startswith("layers.centre") for name, _ in network.named_parameters())


def test_the_budget_is_the_noise_phase_s_penalty(given: Given) -> None:
    network = given.noisy(weight_bits=[5.0] * 6, activation_bits=[6.0] * 4)
    trainee = noise_of(given, network, budget="w4a4", pull=3.0)
    found = trainee.penalty()
    assert found is not None
    # A bit and two bits too many, less half the corner of smooth L1 each.
    assert float(found.detach()) == pytest.approx(3.0 * (0.95 + 1.95), rel=1e-5)
    found.backward()
    grad, sites = network.widths.raw.grad, network.site_widths.raw.grad
    assert grad is not None and sites is not None
    assert grad.sign().tolist() == [0, 1, 1, 1, 1, 0] and bool((sites > 0).all())


def test_the_penalty_counts_whole_widths(given: Given) -> None:
    """Widths a little above the budget round to it: there is nothing to pull."""
    network = given.noisy(weight_bits=[4.3] * 6, activation_bits=[3.7] * 4)
    trainee = noise_of(given, network)
    assert excess(trainee.budget, trainee.costs, network.widths.bits(), network.site_widths.bits()) > 0.3
    found = trainee.penalty()
    assert found is not None and float(found.detach()) == 0.0


def test_the_fine_tune_has_no_penalty(given: Given) -> None:
    assert finetune_of(given).penalty() is None


def test_blocks_join_the_penalty_of_both_phases(given: Given) -> None:
    blocks = BlockDistance(given.prepared, weight=2.0, device=CPU)
    finetune = FinetuneTrainee(given.quantised(), figures={}, blocks=blocks)
    assert finetune.penalty() is None, "no pass before"
    outputs = finetune.outputs(given.images[:4])
    assert torch.equal(outputs, given.quantised()(given.images[:4]))
    pull = finetune.penalty()
    assert pull is not None and float(pull.detach()) > 0.0
    assert finetune.penalty() is None, "each pass counts once"

    network = given.noisy()
    costs = costs_of(given.prepared)
    shared: Any = {"budget": Budget.parse("w4a4"), "costs": costs, "pull": 1.0, "batch": 4, "steps": 1}
    plain, watched = NoiseTrainee(network, **shared), NoiseTrainee(network, **shared, blocks=blocks)
    found = []
    for made in (plain, watched):
        made.start_epoch(torch.Generator().manual_seed(1))
        made.outputs(given.images[:4])
        penalty = made.penalty()
        assert penalty is not None
        found.append(float(penalty.detach()))
    assert found[1] > found[0]


def test_noise_while_training_and_real_quantisers_to_look(given: Given) -> None:
    network, x = given.noisy(), given.images
    trainee = noise_of(given, network)
    with torch.no_grad():
        trainee.start_epoch(torch.Generator().manual_seed(1))
        first, second = trainee.outputs(x), trainee.outputs(x)
        trainee.start_epoch(torch.Generator().manual_seed(1))
        assert torch.equal(trainee.outputs(x), first), "an epoch's generator decides its noise"
        assert not torch.equal(first, second)
        assert torch.equal(trainee.predict(x), network(x))
        tuned = finetune_of(given)
        assert torch.equal(tuned.predict(x), tuned.outputs(x))


def test_what_ran_away_is_held_after_a_step(given: Given) -> None:
    noisy = noise_of(given, given.noisy())
    tuned = finetune_of(given)
    with torch.no_grad():
        noisy.network.widths.raw[1] = 50.0
        noisy.network.interval[0] *= 100.0
        tuned.network.scale[1][0] *= 100.0
    for trainee in (noisy, tuned):
        trainee.after_step()
    assert noisy.network.widths.steps_held()[1] == 1 and int(noisy.network.held) == 1
    assert tuned.network.held.tolist() == [1, 0]


def test_figures_are_weighted_averages(given: Given) -> None:
    network = given.noisy(weight_bits=(8, 2.5, 4, 3, 6, 8), activation_bits=(3, 5, 4.5, 7))
    found = noise_of(given, network).report()
    weights = (864 * 2.5 + 96 * 4 + 576 * 3 + 128 * 6) / (864 + 96 + 576 + 128)
    activations = (512 * 3 + 768 * 5 + 512 * 4.5 + 144 * 7) / (512 + 768 + 512 + 144)
    edges = 64 * 8 * 27 * 64 + 40 * 64
    inner = 64 * 12 * 72 * 2.5 * 3 + 64 * 96 * 4 * 5 + 9 * 576 * 3 * 4.5 + 9 * 128 * 6 * 7
    assert found == pytest.approx(
        {"weight_bits": weights, "activation_bits": activations, "gbop": (edges + inner) / 1e9}, rel=1e-5
    )


def test_averages_of_nothing_are_left_out(given: Given) -> None:
    costs = costs_of(given.prepared)
    fixed = type(costs)(
        weights=(0,) * 6, activations=(0,) * 4, macs=costs.macs, reads=costs.reads, read_bits=costs.read_bits
    )
    found = describe_widths(fixed, torch.full((6,), 8.0), torch.full((4,), 8.0))
    assert found == pytest.approx({"gbop": 64 * sum(costs.macs) / 1e9}, rel=1e-6)
    assert finetune_of(given).report() == {"gbop": 1.5}


def test_both_are_trainees(given: Given) -> None:
    trainees: list[Trainee] = [noise_of(given, given.noisy()), finetune_of(given)]
    for trainee in trainees:
        state = trainee.module.state_dict()
        assert {f"layers.weight.{number}" for number in range(6)} <= state.keys()
