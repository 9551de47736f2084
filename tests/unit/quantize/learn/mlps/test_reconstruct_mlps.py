from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mixport.lower import lower
from mixport.model.programs.fx_graph import aten
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.graph.capture import capture
from mixport.quantize.learn.loop.activation_store import ActivationStore
from mixport.quantize.learn.loop.checkpoints import NoCheckpoints, UnitCheckpoints
from mixport.quantize.learn.mlps import reconstruct as module_under_test
from mixport.quantize.learn.mlps.find import find_mlps, read_values
from mixport.quantize.learn.mlps.prefix import Prefix, cut
from mixport.quantize.learn.mlps.reconstruct import (
    LARGEST_ERROR,
    ReconstructedMlps,
    mlp_steps,
    reconstruct_mlps,
)
from mixport.quantize.learn.mlps.train import gelu_output, relu_output
from mixport.quantize.quantizer import quantize
from mixport.records.choices.reconstruction_preset import PRESETS, ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.storage.images import normalise
from mixport.validate.validate import validate
from tests.reconstruction import calibration_of, float_model, mlps, seeded, stack

_IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(4))
_OPTIONS = ReconstructionOptions(preset=PRESETS["aphq"], iters=10, seed=0)


class Checkpoints:
    """Finished MLPs in folders; stops behind a number of them."""

    def __init__(self, root: Path, *, stop: int | None = None) -> None:
        self.root, self.stop, self.kept = root, stop, 0
        root.mkdir(exist_ok=True)

    def find(self, place: int | str) -> Path | None:
        folder = self.root / str(place)
        return folder if folder.is_dir() else None

    @contextmanager
    def keep(self, place: int | str) -> Any:
        if self.kept == self.stop:
            raise KeyboardInterrupt
        (self.root / str(place)).mkdir()
        self.kept += 1
        yield self.root / str(place)


class Heard:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.total, self.calls = 0, list[tuple[int, str]]()

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Any:
        self.total = total
        yield lambda count, detail="": self.calls.append((count, detail))


def run(
    module: nn.Module,
    folder: Path,
    *,
    dynamic: bool = True,
    checkpoints: UnitCheckpoints | None = None,
    progress: Any = None,
    **options: Any,
) -> tuple[ReconstructedMlps, Callable[[Tensor], Tensor]]:
    captured = capture(module.requires_grad_(False), input_shape=(1, 3, 16, 16), dynamic_batch=dynamic)
    made = reconstruct_mlps(
        captured.graph,
        lambda part: _IMAGES[part],
        count=6,
        input_shape=(1, 3, 16, 16),
        dynamic_batch=dynamic,
        activation_bits=4,
        options=replace(_OPTIONS, **options),
        store=ActivationStore(folder, largest=1 << 20, device=torch.device("cpu")),
        checkpoints=checkpoints or NoCheckpoints(),
        progress=progress or SilentProgress(),
    )
    return made, captured.graph


def test_an_mlp_has_more_steps_than_a_unit_up_to_the_published_number() -> None:
    assert [mlp_steps(iters) for iters in (1, 500, 5000, 8000, 20000, 30000)] == [
        4,
        2000,
        20000,
        20000,
        20000,
        30000,
    ]


def test_every_mlp_learns_and_the_graph_has_relu(tmp_path: Path) -> None:
    heard = Heard()
    made, graph = run(mlps(), tmp_path, progress=heard)
    assert [record.name for record in made.records] == ["blocks.0", "blocks.1"]
    for record in made.records:
        assert len(record.layers) == 3
        assert record.error_before is not None and record.error_after is not None
        assert record.error_after < record.error_before < LARGEST_ERROR
    assert [one.what.startswith("ReLU in the place of GELU, learned: blocks.") for one in made.decisions] == [
        True,
        True,
    ]
    assert made.iters == mlp_steps(10) and heard.total == 2 * made.iters == sum(
        count for count, _ in heard.calls
    )
    assert heard.calls[0][1].startswith("blocks.0, loss ")
    assert isinstance(graph, torch.fx.GraphModule) and find_mlps(graph) == ()
    assert aten.gelu.default not in {node.target for node in graph.graph.nodes}
    assert list(tmp_path.iterdir()) == []


def test_an_mlp_reads_what_the_ones_before_give_and_comes_close_to_the_original(tmp_path: Path) -> None:
    original = capture(mlps().requires_grad_(False), input_shape=(1, 3, 16, 16), dynamic_batch=True).graph
    second = find_mlps(original)[1]
    made, altered = run(mlps(), tmp_path)
    assert isinstance(altered, torch.fx.GraphModule)
    node = next(node for node in altered.graph.nodes if node.name == second.input.name)
    then, now = (
        Prefix(cut(graph, at), device=torch.device("cpu"))(_IMAGES)
        for graph, at in ((original, second.input), (altered, node))
    )
    assert not torch.equal(then, now)
    values = read_values(original, second)
    wanted, got = gelu_output(second, values, then), relu_output(second, values, now)
    assert made.records[1].error_before == pytest.approx(
        float((got - wanted).square().sum() / wanted.square().sum()), rel=1e-5
    )


class ThreeLayers(nn.Module):
    """The layer in the middle belongs to two MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.act, self.head = nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Linear(8, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)
        for layer in (self.patch, self.fc1, self.fc2):
            layer.weight *= 4.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.fc3(self.act(self.fc2(self.act(self.fc1(x))))).mean(1))


def test_mlps_that_share_a_layer_both_come_close_to_the_original(tmp_path: Path) -> None:
    original = capture(
        seeded(ThreeLayers).requires_grad_(False), input_shape=(1, 3, 16, 16), dynamic_batch=True
    ).graph
    second = find_mlps(original)[1]
    made, altered = run(seeded(ThreeLayers), tmp_path)
    assert isinstance(altered, torch.fx.GraphModule) and find_mlps(altered) == ()
    assert [record.layers for record in made.records] == [("fc1", "fc2"), ("fc2", "fc3")]
    last = next(node for node in altered.graph.nodes if node.name == second.second.name)
    wanted, got = (
        Prefix(cut(graph, at), device=torch.device("cpu"))(_IMAGES)
        for graph, at in ((original, second.second), (altered, last))
    )
    error = float((got - wanted).square().sum() / wanted.square().sum())
    assert made.records[1].error_after == pytest.approx(error, rel=1e-4)


def test_a_graph_of_one_image_gives_the_same(tmp_path: Path) -> None:
    (one, a), (many, b) = (run(mlps(), tmp_path, dynamic=dynamic) for dynamic in (False, True))
    torch.testing.assert_close(a(_IMAGES[:1]), b(_IMAGES[:1]), rtol=1e-4, atol=1e-5)
    assert [one.name for one in one.records] == [one.name for one in many.records]


def test_an_interrupted_run_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    whole, wanted = run(mlps(), tmp_path, checkpoints=Checkpoints(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(mlps(), tmp_path, checkpoints=Checkpoints(tmp_path / "cut", stop=1))
    heard = Heard()
    again, got = run(mlps(), tmp_path, checkpoints=Checkpoints(tmp_path / "cut"), progress=heard)
    assert heard.calls[0] == (mlp_steps(10), "blocks.0, from the cache") and heard.calls[1][1].startswith(
        "blocks.1, loss "
    )
    assert again == whole
    assert torch.equal(got(_IMAGES), wanted(_IMAGES))
    for place in ("mlp-0", "mlp-1"):
        for name in ("mlp.safetensors", "mlp.json"):
            assert (tmp_path / "cut" / place / name).read_bytes() == (
                tmp_path / "whole" / place / name
            ).read_bytes()


def test_an_mlp_whose_loss_is_no_number_keeps_gelu_and_its_weights(tmp_path: Path) -> None:
    def break_(net: Any) -> nn.Module:
        net.blocks[1].fc2.weight.fill_(math.inf)
        return net

    module = break_(mlps().requires_grad_(False))
    checkpoints = Checkpoints(tmp_path / "units")
    made, graph = run(module, tmp_path, checkpoints=checkpoints)
    assert made.records[0].layers and not made.records[1].layers
    assert made.records[1].error_before is made.records[1].error_after is None
    decision = made.decisions[1]
    assert (decision.where, decision.what) == ("blocks.1", "keeps GELU")
    assert decision.why == "ReLU could not be made to fit: loss nan at step 1"
    assert isinstance(graph, torch.fx.GraphModule) and [mlp.name for mlp in find_mlps(graph)] == ["blocks.1"]
    assert run(module, tmp_path, checkpoints=checkpoints)[0] == made


def test_an_mlp_that_relu_does_not_fit_keeps_gelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "LARGEST_ERROR", 1e-9)
    module = mlps()
    made, graph = run(module, tmp_path)
    assert all(not record.layers and record.error_after is not None for record in made.records)
    assert {one.what for one in made.decisions} == {"keeps GELU"}
    assert "above 1e-09" in made.decisions[0].why
    torch.testing.assert_close(graph(_IMAGES), module(_IMAGES), rtol=1e-5, atol=1e-6)


def test_any_seed_does(tmp_path: Path) -> None:
    """torch takes seeds below 2**64 only; the number of the MLP and a factor come on top of ours."""
    made, _ = run(mlps(), tmp_path, iters=1, seed=2**63)
    assert len(made.records) == 2


def test_a_model_without_mlps_says_so(tmp_path: Path) -> None:
    made, _ = run(stack(), tmp_path)
    assert (made.records, made.iters, [one.what for one in made.decisions]) == (
        (),
        0,
        ["no MLP to reconstruct"],
    )


@pytest.mark.sweep
def test_the_file_has_no_gelu_and_is_exact(tmp_path: Path) -> None:
    calibration, model = calibration_of(tmp_path), float_model(mlps())
    target, operators = load_target("ort-cpu"), dict[bool, set[str]]()
    for with_relu in (False, True):
        folder = tmp_path / str(with_relu)
        folder.mkdir()
        preset = replace(PRESETS["aphq"], mlp_reconstruction=with_relu)
        options = ReconstructionOptions(preset=preset, iters=2)
        made = quantize(
            model, calibration, target, scheme=Scheme.parse("w4a4"), reconstruction=options, workdir=folder
        )
        assert made.reconstruction is not None and len(made.reconstruction.mlps) == (2 if with_relu else 0)
        assert made.reconstruction.mlp_iters == (mlp_steps(2) if with_relu else 0)
        assert any("ReLU in the place of GELU" in one.what for one in made.decisions) == with_relu
        lowered = lower(made, target, workdir=folder)
        pixels = normalise(np.asarray(calibration.open_images()[:4]), preprocessing=model.preprocessing)
        assert validate(lowered, pixels, target, simulation=open_simulation(made)).verdict == "exact"
        nodes = list(onnx.load(str(lowered.model_path)).graph.node)
        operators[with_relu] = {node.op_type for node in nodes}
        tables = [node for node in nodes if "act" in node.name and node.op_type == "GatherElements"]
        assert bool(tables or operators[with_relu] & {"Erf", "Gelu", "Tanh"}) != with_relu, [
            (n.op_type, n.output[0]) for n in nodes
        ]
