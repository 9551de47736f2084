"""NIPQ from end to end on a tiny network: a few steps, and the budget is kept whatever they learned."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.emit.emit import emit
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.learn.loop.checkpoints import NoCheckpoints
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.errors import InvariantError, SizeBudgetError, TargetError
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.train.data.batches import BatchSource
from mixport.train.data.training_images import split
from mixport.train.loop.loop import Trained, train
from mixport.train.loop.losses import Objective
from mixport.train.loop.settings import LoopSettings
from mixport.train.network.quantised import QuantisedNetwork
from mixport.train.nipq.budget import Budget, average, bit_operations
from mixport.train.nipq.costs import costs_of
from mixport.train.nipq.method import Nipq, NipqSettings
from mixport.train.nipq.network import free_sites
from mixport.train.nipq.trainees import FinetuneTrainee, NoiseTrainee
from tests.reconstruction import DEFAULT, calibration_of, float_model
from tests.trained_nets import CPU, LAYERS, near, residual

WEIGHTS, VALUES = (864, 96, 576, 128), (512, 768, 512, 144)
"""Of the inner layers, and of what each reads of an image."""
CLASSES = 5


def method_of(folder: Path, budget: str, *, target: str = "ort-cpu", **changes: Any) -> Nipq:
    own = {name: changes.pop(name) for name in ("fixed_bytes", "steps") if name in changes}
    settings: dict[str, Any] = {"noise_epochs": 1, "finetune_epochs": 1, "edge_convention": "qdrop"}
    return Nipq(
        model=float_model(residual()),
        target=load_target(target),
        calibration=calibration_of(folder),
        settings=NipqSettings(budget=Budget.parse(budget), **{**settings, **changes}),
        workdir=folder,
        checkpoints=NoCheckpoints(),
        progress=SilentProgress(),
        batch=4,
        **{"steps": 2, **own},
    )


def run(method: Nipq, *, lr: float = 0.02) -> Trained:
    """Two steps an epoch on 9 images with labels, one held out."""
    images = np.asarray(method.calibration.open_images()[:9])
    labels = np.arange(9, dtype=np.int64) % CLASSES
    data = split(images, labels, source="tests", sha256="", seed=0, classes=CLASSES)
    source = BatchSource(
        data=data,
        preprocessing=method.model.preprocessing,
        batch=method.batch,
        augmentation="flip+crop",
        mix="none",
        classes=CLASSES,
        seed=0,
        device=CPU,
    )
    objective = Objective(teacher=method.model.module)
    settings = LoopSettings(optimiser="adam", lr=lr)
    return train(
        method.phases(),
        source,
        objective,
        settings,
        checkpoints=NoCheckpoints(),
        progress=SilentProgress(),
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    method: Nipq
    trained: Trained
    assignment: Assignment

    @property
    def prepared(self) -> Prepared:
        assert self.method.shipped is not None
        return self.method.shipped

    @property
    def network(self) -> QuantisedNetwork:
        assert isinstance(self.trained.trainee, FinetuneTrainee)
        return self.trained.trainee.network

    @property
    def weight_bits(self) -> list[int]:
        """Of the inner layers."""
        return [width.bits for width in self.assignment.widths.values() if width.name in LAYERS[1:5]]

    @property
    def activation_bits(self) -> list[int]:
        """Of what the inner layers read: what has no site of its own is the 8-bit carrier."""
        found = {
            site.base or site.name: site.bits
            for site in self.prepared.plan.sites
            if site.role == "compute" and site.name != "pool"
        }
        return [found.get(name, 8) for name in ("stem", "body", "add", "wide")]


def result_of(folder: Path, budget: str, *, lr: float = 0.02, **changes: Any) -> Result:
    method = method_of(folder, budget, **changes)
    trained = run(method, lr=lr)
    return Result(method=method, trained=trained, assignment=method.assignment(trained.trainee))


@pytest.mark.parametrize(("weights", "activations"), [(3.0, 4.0), (2.5, 3.5), (4.0, 2.0)])
def test_averages_keep_the_budget(tmp_path: Path, weights: float, activations: float) -> None:
    found = result_of(tmp_path, f"w{weights:g}a{activations:g}")
    got = average(found.weight_bits, WEIGHTS), average(found.activation_bits, VALUES)
    assert got[0] is not None and got[0] <= weights and got[1] is not None and got[1] <= activations
    if activations == 2.0:
        assert found.activation_bits == [2, 2, 2, 2]
    fixed = [width for width in found.assignment.widths.values() if width.name in {"stem", "head"}]
    assert [width.bits for width in fixed] == [8, 8]
    last = found.trained.curve[-1].figures
    assert last["weight_bits"] == pytest.approx(got[0]) and last["activation_bits"] == pytest.approx(got[1])


def test_what_is_trained_is_what_ships(tmp_path: Path) -> None:
    found = result_of(tmp_path, "w3a4")
    assert [record.phase for record in found.trained.curve] == ["noise", "fine-tune"]
    for node, width in found.assignment.widths.items():
        codes = found.assignment.integers[node].codes
        assert codes.min() >= -(2 ** (width.bits - 1)) and codes.max() < 2 ** (width.bits - 1)
    shipped = QuantisedNetwork(found.prepared, found.assignment.params, found.assignment.integers, device=CPU)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got, trained, floats = shipped(x), found.network(x), found.method.model.module(x)
    near(got, trained)
    largest = float(trained.abs().max())
    assert float((floats - trained).abs().max()) > 0.1 * largest, "training moved the model further than that"
    images = CalibrationBatches(model=found.method.model, calibration=found.method.calibration)
    record = emit(found.prepared, found.assignment, images, workdir=tmp_path)
    program = open_simulation(record).simulate(x.numpy(), overrides={})
    near(got, torch.as_tensor(program.codes[record.signature.logits.name]))


def test_the_fine_tune_goes_on_from_weights_biases_and_intervals(tmp_path: Path) -> None:
    method = method_of(tmp_path, "w3a4", learn_widths=False)
    noise, finetune = method.phases()
    before = noise.make(None)
    assert isinstance(before, NoiseTrainee)
    learned, generator = before.network, torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in learned.layers.weight:
            weight.mul_(1.0 + 0.5 * torch.randn(weight.shape, generator=generator))
        for interval, length in zip(learned.interval, (3.0, 1.7, 2.3, 0.9), strict=True):
            interval.fill_(length)
    floats = learned.layers.give()
    after = finetune.make(before)
    assert isinstance(after, FinetuneTrainee)
    params = after.network.params()
    for name, length in (("stem.a4", 3.0), ("body", 1.7), ("add.a4", 2.3), ("wide", 0.9)):
        assert params[name].scale == float(np.float32(np.float32(length).item() / 15))
    for number, name in enumerate(LAYERS):
        weight, wanted = after.network.layers.weight[number], floats[f"weight/{name}"]
        bits = 8 if name in {"stem", "head"} else 3
        scale = after.network.scale[number].detach().view(-1, *[1] * (weight.dim() - 1))
        inside = wanted.abs() < (2 ** (bits - 1) - 1) * scale
        # A weight starts at most 0.45 steps from its code, so that it moves by 0.05 at most.
        assert bool(((weight - wanted).abs() <= 0.051 * scale)[inside].all()) and bool(inside.any())
        bias = floats[f"bias/{name}"]
        if bias.numel():
            # The layer's mean output is the trained one: w x + b at the mean input, with the codes that ship.
            got = after.network.layers.bias_of(number, after.network.shipped_weight(number))
            kept = learned.integers([8, 3, 3, 3, 3, 8])[learned.layers.nodes[number]].bias
            assert got is not None and kept is not None
            torch.testing.assert_close(got, torch.as_tensor(kept), rtol=0, atol=1e-5)  # sums of 72 products


def test_the_fewest_bits_everywhere(tmp_path: Path) -> None:
    """Where an average allows 2 bits alone, no width moves, and noise is that of 2 bits."""
    found = result_of(tmp_path, "w2a4")
    assert found.weight_bits == [2, 2, 2, 2]
    for node, width in found.assignment.widths.items():
        if width.name in LAYERS[1:5]:
            assert set(np.unique(found.assignment.integers[node].codes)) <= {-2, -1, 0, 1}
    assert found.trained.curve[0].figures["weight_bits"] == 2.0


def test_the_same_twice(tmp_path: Path) -> None:
    one, other = (result_of(tmp_path, "w3a4") for _ in range(2))
    assert one.weight_bits == other.weight_bits and one.activation_bits == other.activation_bits
    for a, b in zip(one.assignment.integers.values(), other.assignment.integers.values(), strict=True):
        assert np.array_equal(a.codes, b.codes) and np.array_equal(a.scales, b.scales)


def test_widths_that_are_not_learned_stay_at_the_budget(tmp_path: Path) -> None:
    found = result_of(tmp_path, "w3a5", learn_widths=False)
    assert found.weight_bits == [3] * 4 and found.activation_bits == [5] * 4


def test_a_budget_of_bytes_takes_the_widest_of_each_storage_type(tmp_path: Path) -> None:
    weights = sum(WEIGHTS)
    size = weights * 4 // 8 + 500
    found = result_of(tmp_path, f"{size}b:a4", fixed_bytes=500)
    assert set(found.weight_bits) <= {2, 4, 8}
    assert sum(bits * count for bits, count in zip(found.weight_bits, WEIGHTS, strict=True)) <= 8 * (
        size - 500
    )


def test_a_budget_of_bit_operations(tmp_path: Path) -> None:
    found = result_of(tmp_path, "2mbop")
    table = dict(zip(LAYERS, (8, *found.weight_bits, 8), strict=True))
    reads = torch.tensor([float(bits) for bits in found.activation_bits])
    costs = costs_of(method_of(tmp_path, "2mbop").prepared(None))
    spent = float(bit_operations(costs, torch.tensor([float(table[name]) for name in LAYERS]), reads))
    assert spent <= 2e6
    assert found.trained.curve[-1].figures["gbop"] == pytest.approx(spent / 1e9, rel=1e-5)


def test_codes_are_reconstructed_between_the_phases(tmp_path: Path) -> None:
    options = ReconstructionOptions(preset=DEFAULT, iters=2)
    found = result_of(tmp_path, "w3a4", reconstruction=options, finetune_epochs=0)
    got = average(found.weight_bits, WEIGHTS)
    assert got is not None and got <= 3.0
    assert [record.phase for record in found.trained.curve] == ["noise"]


def test_without_epochs_it_still_gives_integers(tmp_path: Path) -> None:
    found = result_of(tmp_path, "w3a4", noise_epochs=0, finetune_epochs=0)
    assert found.trained.curve == ()
    # Without noise no width is learned: all have the budget's.
    got = average(found.weight_bits, WEIGHTS), average(found.activation_bits, VALUES)
    assert got[0] is not None and 2 < got[0] <= 3 and got[1] is not None and 3 < got[1] <= 4
    assert set(found.weight_bits) == {3} and set(found.activation_bits) == {4}


def test_what_was_held_is_said(tmp_path: Path) -> None:
    found = result_of(tmp_path, "w2.1a2.1", lr=0.5, steps=1)
    held = [one for one in found.method.decisions if one.what == "width held at the end of its range"]
    names = {one.where for one in held}
    assert names & set(LAYERS[1:5]) and names & {"stem.a4", "body", "add.a4", "wide"}


@pytest.mark.parametrize(("budget", "fixed_bytes"), [("1kb:a4", 2000), ("1000bop", 0), ("w3a4", None)])
def test_a_budget_out_of_reach_is_refused_before_training(
    tmp_path: Path, budget: str, fixed_bytes: int | None
) -> None:
    method = method_of(tmp_path, budget, fixed_bytes=fixed_bytes or 0)
    noise, _ = method.phases()
    if fixed_bytes is None:
        assert isinstance(noise.make(None), NoiseTrainee)
        assert not method.decisions, "whether it can be kept is asked in silence"
        return
    with pytest.raises(SizeBudgetError, match=f"--budget {budget}: the fewest bits"):
        noise.make(None)


def test_widths_start_above_the_budget(tmp_path: Path) -> None:
    method = method_of(tmp_path, "w3a4")
    noise, _ = method.phases()
    trainee = noise.make(None)
    assert isinstance(trainee, NoiseTrainee)
    assert trainee.network.widths.values()[1:5] == pytest.approx([5.0] * 4, abs=1e-5)
    assert trainee.network.site_widths.values() == pytest.approx([6.0] * 4, abs=1e-5)
    assert trainee.network.layers.centre[1].any(), "biases follow weights"
    assert method.scheme().name == "nipq:w3a4" and method.scheme().edge_bits == 8
    assert free_sites(trainee.network.prepared) == ("stem.a4", "body", "add.a4", "wide")


def test_a_target_with_nothing_to_choose_is_refused(tmp_path: Path) -> None:
    method = method_of(tmp_path, "w3a8")
    rules = method.target.activations.model_copy(update={"bits": (8,)})
    method.target = method.target.model_copy(update={"activations": rules})
    with pytest.raises(TargetError, match="activation bits 8, nothing for --method nipq to choose"):
        method.scheme()


def test_phases_in_another_order_are_our_bug(tmp_path: Path) -> None:
    method = method_of(tmp_path, "w3a4")
    noise, finetune = method.phases()
    with pytest.raises(InvariantError, match="follows the noise phase"):
        finetune.make(None)
    with pytest.raises(InvariantError, match="not the fine-tune"):
        method.assignment(noise.make(None))
