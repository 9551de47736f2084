"""The engine on small modules: what is learned, what is left alone, and what comes back the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import constant
from mixport.quantize.emit.insert import insert_activations, insert_weights
from mixport.quantize.integers.nearest import least_scales, read_params
from mixport.quantize.learn.reconstruction.reconstruct import Reconstructed
from mixport.quantize.learn.reconstruction.rounding import Rounding
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.learn.reconstruction.unit_learner import UnitLearner
from mixport.quantize.learn.reconstruction.unit_limits import steps_with_room
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.units import find_units
from mixport.records.choices.reconstruction_preset import PRESETS
from mixport.records.targets import load_target
from tests import reconstruction as small
from tests.reconstruction import DEFAULT, Recorder, changed, learn, task_of

Source = Callable[[slice], Tensor]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Source]:
    return task_of(small.stack(), tmp_path_factory.mktemp("stack"))


def same(a: Reconstructed, b: Reconstructed) -> bool:
    """Equal integers, scales, biases, steps and records."""
    layers = all(
        np.array_equal(one.codes, b.integers[layer].codes)
        and np.array_equal(one.scales, b.integers[layer].scales)
        and (one.bias is None or np.array_equal(one.bias, b.integers[layer].bias))
        for layer, one in a.integers.items()
    )
    return layers and (a.params, a.record, a.decisions) == (b.params, b.record, b.decisions)


def learned(made: Reconstructed, task: Task, name: str) -> tuple[Any, Any]:
    """Integers of a layer before and after."""
    layer = next(node for node, width in task.widths.items() if width.name == name)
    return task.integers[layer], made.integers[layer]


def check_integers(made: Reconstructed, task: Task) -> None:
    """Codes inside their width, positive finite scales, and biases that fit int32 with room for the sum."""
    for layer, width in task.widths.items():
        found = made.integers[layer]
        assert found.codes.dtype == np.int8
        assert -(2 ** (width.bits - 1)) <= found.codes.min() <= found.codes.max() <= 2 ** (width.bits - 1) - 1
        assert (
            found.scales.dtype == np.float32 and np.isfinite(found.scales).all() and (found.scales > 0).all()
        )
        x_scale = read_params(task.plan, layer, made.params).scale
        alive = found.codes.reshape(len(found.codes), -1).any(1)
        assert (found.scales >= least_scales(found.bias, len(found.scales), x_scale=x_scale))[alive].all()
    for params in made.params.values():
        assert np.isfinite(params.scale) and params.scale > 0


def test_narrow_codes_are_learned_and_edges_are_not(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    made = learn(task, images, tmp_path)
    check_integers(made, task)
    assert [(unit.name, unit.layers, unit.sites) for unit in made.record.units] == [
        ("second", ("second",), ("first",)),
        ("third", ("third",), ("second",)),
    ]
    assert all(unit.error_after < unit.error_before for unit in made.record.units)
    assert made.record.threads == torch.get_num_threads()
    assert (
        made.record.preset,
        made.record.iters,
        made.record.images,
        made.record.seed,
        made.record.device,
    ) == (
        "mixport",
        20,
        12,
        0,
        "cpu",
    )
    for name in ("second", "third"):
        before, after = learned(made, task, name)
        assert not np.array_equal(before.codes, after.codes)
        assert not np.array_equal(before.scales, after.scales)
        assert not np.array_equal(before.bias, after.bias)
    for name in ("first", "head"):
        before, after = learned(made, task, name)
        assert before is after
    assert {name for name in made.params if made.params[name] != task.params[name]} == {"first", "second"}
    assert list(tmp_path.iterdir()) == []


def test_the_seed_may_be_of_any_size(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    largest = learn(task, images, tmp_path, seed=2**64, iters=1)
    assert largest.record.seed == 2**64


def test_a_unit_says_how_many_images_a_step_had(
    stack: tuple[Task, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixport.quantize.learn.reconstruction import optimise

    task, images = stack
    assert [unit.batch for unit in learn(task, images, tmp_path, iters=1).record.units] == [24, 24], (
        "12 images and their mirrors"
    )
    assert [
        unit.batch
        for unit in learn(task, images, tmp_path, iters=1, preset=changed(DEFAULT, batch=5)).record.units
    ] == [5, 5]
    monkeypatch.setattr(
        optimise, "_LARGEST_TENSOR", 10 * 8 * 14 * 14
    )  # the input of `second`: 8 maps of 14 x 14
    assert [unit.batch for unit in learn(task, images, tmp_path, iters=1).record.units] == [10, 13]


def test_the_seed_decides(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    first = learn(task, images, tmp_path)
    assert same(first, learn(task, images, tmp_path))
    other = learn(task, images, tmp_path, seed=1)
    assert not np.array_equal(
        learned(first, task, "second")[1].codes, learned(other, task, "second")[1].codes
    )
    assert other.record.seed == 1


def test_files_give_the_same_as_memory(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    assert same(learn(task, images, tmp_path), learn(task, images, tmp_path, largest=0))
    assert list(tmp_path.iterdir()) == []


class Checkpoints:
    """Units in folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, index: int) -> Path | None:
        folder = self.root / str(index)
        return folder if folder.is_dir() else None

    @contextmanager
    def keep(self, index: int) -> Any:
        (self.root / "new").mkdir()
        yield self.root / "new"
        (self.root / "new").rename(self.root / str(index))


def test_a_run_goes_on_behind_the_last_finished_unit(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    checkpoints = Checkpoints(tmp_path)
    heard = Recorder()
    whole = learn(task, images, tmp_path, checkpoints=checkpoints, progress=heard)
    assert (sum(count for count, _ in heard.calls), heard.total) == (40, 40)
    assert heard.calls[0][1].startswith("second, loss ") and heard.calls[-2][1].startswith("third, loss ")
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    (kept[1] / "unit.json").unlink()
    (kept[1] / "unit.safetensors").unlink()
    kept[1].rmdir()
    heard = Recorder()
    assert same(whole, learn(task, images, tmp_path, checkpoints=checkpoints, progress=heard))
    assert heard.calls[0] == (20, "second, from the cache")
    assert sum(count for count, _ in heard.calls) == heard.total == 40
    assert heard.calls[1][1].startswith("third, loss ")
    heard = Recorder()
    assert same(whole, learn(task, images, tmp_path, checkpoints=checkpoints, progress=heard))
    assert heard.calls == [(20, "second, from the cache"), (20, "third, from the cache")]


def test_every_stage_keeps_its_own_units(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    preset, checkpoints, heard = PRESETS["brecq"], Checkpoints(tmp_path), Recorder()
    whole = learn(task, images, tmp_path, preset=preset, checkpoints=checkpoints, progress=heard)
    check_integers(whole, task)
    assert [(unit.name, bool(unit.sites)) for unit in whole.record.units] == [
        ("second (weights)", False),
        ("third (weights)", False),
        ("second (steps)", True),
        ("third (steps)", True),
    ]
    assert sum(count for count, _ in heard.calls) == heard.total == 2 * 20 + 2 * 5
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 4
    shutil.rmtree(tmp_path / max(kept, key=int))
    heard = Recorder()
    assert same(whole, learn(task, images, tmp_path, preset=preset, checkpoints=checkpoints, progress=heard))
    assert sum("from the cache" in text for _, text in heard.calls) == 3
    fixed = learn(replace(task, grid=ScaleGrid(power_of_two=True)), images, tmp_path, preset=preset, iters=5)
    assert [unit.name for unit in fixed.record.units] == ["second (weights)", "third (weights)"], (
        "the second stage has nothing to learn"
    )
    assert fixed.params == dict(task.params)


def test_a_second_stage_that_breaks_down_keeps_what_the_first_learned(
    stack: tuple[Task, Source], tmp_path: Path
) -> None:
    task, images = stack
    first = changed(DEFAULT, name="two", step_lr=0.0).stages[0]
    preset = replace(
        DEFAULT, stages=(first, replace(first, name="steps", rounding_lr=0.0, step_lr=float("inf")))
    )
    made = learn(task, images, tmp_path, preset=preset)
    check_integers(made, task)
    assert [(one.where, one.what) for one in made.decisions] == [
        (name, "left as before the stage of steps") for name in ("second", "third")
    ]
    alone = learn(task, images, tmp_path, preset=replace(preset, stages=(first,)))
    assert made.params == alone.params == dict(task.params)
    for layer, one in alone.integers.items():
        assert np.array_equal(one.codes, made.integers[layer].codes)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_batch(count: int, tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path, images=count)
    made = learn(task, images, tmp_path, count=count, iters=5)
    check_integers(made, task)
    assert made.record.images == count


@pytest.mark.parametrize("name", ["without_biases", "windows", "dead"])
def test_awkward_modules(name: str, tmp_path: Path) -> None:
    task, images = task_of(getattr(small, name)(), tmp_path)
    made = learn(task, images, tmp_path)
    check_integers(made, task)
    for unit in made.record.units:
        assert unit.error_after is not None and unit.error_before is not None
        assert unit.error_after <= unit.error_before
    assert made.record.units[0].layers
    if name == "dead":
        assert made.record.units[-1].error_before == 0.0, "an output of zeros has no error"
        assert not learned(made, task, "second")[1].codes[0].any(), "no gradient reaches a channel of zeros"


def test_images_one_by_one_give_units_of_one_image(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    together = learn(task, images, tmp_path, iters=5)
    alone = learn(replace(task, dynamic_batch=False), images, tmp_path, iters=5)
    check_integers(alone, task)
    for one, other in zip(together.record.units, alone.record.units, strict=True):
        assert one.error_before == pytest.approx(other.error_before, rel=0.02), (
            "rounding ties may fall otherwise"
        )


def test_squares_that_leave_float32_leave_the_unit_to_nearest(tmp_path: Path) -> None:
    task, images = task_of(small.huge(), tmp_path)
    made = learn(task, images, tmp_path)
    check_integers(made, task)
    assert next((one.where, one.what, one.why) for one in made.decisions) == (
        "second",
        "left rounded to nearest",
        "loss inf at step 1",
    )
    before, after = learned(made, task, "second")
    assert before is after
    assert made.record.units[0].error_before == made.record.units[0].error_after
    assert np.isfinite(made.record.units[0].error_after), "the error is summed in float64"


@pytest.mark.parametrize(
    "rates", [{"rounding_lr": float("inf")}, {"bias_lr": 1e30}, {"step_lr": float("inf")}], ids=str
)
def test_what_is_no_number_is_never_used(
    rates: dict[str, float], stack: tuple[Task, Source], tmp_path: Path
) -> None:
    task, images = stack
    heard = Recorder()
    made = learn(task, images, tmp_path, preset=changed(DEFAULT, **rates), progress=heard)
    check_integers(made, task)
    assert {(one.where, one.what) for one in made.decisions} == {
        (name, "left rounded to nearest") for name in ("second", "third")
    }
    if rates != {
        "rounding_lr": float("inf")
    }:  # codes are held where they exist, so that only their error tells
        assert all("nan" in one.why or "inf" in one.why or "not finite" in one.why for one in made.decisions)
    assert made.params == dict(task.params)
    assert all(made.integers[layer] is one for layer, one in task.integers.items())
    assert sum(count for count, _ in heard.calls) == heard.total, "the bar ends all the same"


def test_steps_that_run_away_are_held_and_named(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    made = learn(task, images, tmp_path, preset=changed(DEFAULT, step_lr=20.0))
    check_integers(made, task)
    held = [one for one in made.decisions if one.what.startswith("activation step held at")]
    assert held
    for one in held:
        factor = made.params[one.where].scale / task.params[one.where].scale
        assert factor == pytest.approx(4.0, rel=1e-6) or factor == pytest.approx(0.25, rel=1e-6)


def test_scales_that_run_to_zero_are_held_and_never_worse(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    made = learn(task, images, tmp_path, preset=changed(DEFAULT, scale_lr=1.0))
    check_integers(made, task)
    assert "weight scale of 1 channels held at its floor" in [one.what for one in made.decisions]
    for name in ("second", "third"):
        before, after = learned(made, task, name)
        assert (after.scales >= before.scales / 16 * 0.999).all()
    for unit in made.record.units:
        assert unit.error_after <= unit.error_before


def test_a_scale_below_its_floor_takes_its_codes_along(tmp_path: Path) -> None:
    """A bias that needs a larger scale than the weights: raising the scale alone would multiply the
    weights.
    """

    def heavy(m: small.Stack) -> None:
        m.second.bias[2] = 5e6

    task, images = task_of(small.seeded(small.Stack, heavy), tmp_path)
    layer = next(node for node, width in task.widths.items() if width.name == "second")
    executor = Executor(
        task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=True, device=torch.device("cpu")
    )
    learner = UnitLearner(
        task=task, executor=executor, preset=DEFAULT, stage=DEFAULT.stages[0], iters=1, seed=0, batch=4
    )
    start = learner.start(layer, task.integers[layer], task.params)
    assert task.integers[layer].scales[2] < start.least[2], "the case is the one meant"
    rounding = Rounding([start], method="free")
    (codes,) = rounding.split(rounding.codes(hard=True))
    inside = (start.weight / start.scales.view(-1, 1, 1, 1)).clamp(-2, 1)
    assert float((codes - inside).abs().max()) <= 0.5
    assert torch.equal(rounding.scales(0).detach(), start.scales)
    check_integers(learn(task, images, tmp_path), task)


def test_a_step_keeps_room_for_the_bias_of_a_layer_that_is_not_learned(tmp_path: Path) -> None:
    def heavy(m: small.Stack) -> None:
        m.second.bias[2] = 1e6
        m.third.weight[:, 2] = 0.0

    task, _ = task_of(small.seeded(small.Stack, heavy), tmp_path, scheme="w8a4")
    layers = list(task.widths)
    smaller = {"first": task.params["first"].scale / 2, "second": task.params["second"].scale / 2}
    kept, decisions = steps_with_room(task, smaller, layers, task.params, task.integers)
    assert kept == {"second": smaller["second"]}
    assert [(one.where, one.what) for one in decisions] == [("first", "activation step kept as calibrated")]
    larger = {"first": task.params["first"].scale * 2}
    assert steps_with_room(task, larger, layers, task.params, task.integers) == (larger, [])


def test_a_target_of_powers_of_two_keeps_its_steps(stack: tuple[Task, Source], tmp_path: Path) -> None:
    task, images = stack
    made = learn(replace(task, grid=ScaleGrid(power_of_two=True)), images, tmp_path, iters=5)
    assert made.params == dict(task.params)
    assert [unit.sites for unit in made.record.units] == [(), ()]
    assert next((one.where, one.what) for one in made.decisions) == (
        "reconstruction",
        "activation steps kept as calibrated",
    )
    assert learned(made, task, "second")[0] is not learned(made, task, "second")[1]


def test_an_operator_without_a_derivative_leaves_its_unit_to_nearest(
    stack: tuple[Task, Source], tmp_path: Path, monkeypatch: Any
) -> None:
    from mixport.quantize.learn.units import execute

    task, images = stack
    real = execute.Executor.run

    def run(self: Any, unit: Any, x: Tensor, **options: Any) -> Tensor:
        value = real(self, unit, x, **options)
        return torch.ops.aten.copy.default(value, value) if unit.name == "second" else value

    monkeypatch.setattr(execute.Executor, "run", run)
    made = learn(task, images, tmp_path)
    (decision,) = made.decisions
    assert (decision.where, decision.what) == ("second", "left rounded to nearest")
    assert "derivative for aten::copy is not implemented" in decision.why
    assert made.record.units[1].layers == ("third",)


def test_an_output_that_nothing_reaches_leaves_its_unit_to_nearest(
    stack: tuple[Task, Source], tmp_path: Path, monkeypatch: Any
) -> None:
    from mixport.quantize.learn.units import execute

    task, images = stack
    real = execute.Executor.run
    monkeypatch.setattr(
        execute.Executor, "run", lambda *arguments, **options: real(*arguments, **options).detach()
    )
    made = learn(task, images, tmp_path)
    assert {one.why for one in made.decisions} == {"its output does not depend on what could be learned"}


def test_other_errors_are_not_hidden(stack: tuple[Task, Source], tmp_path: Path, monkeypatch: Any) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(Tensor, "backward", run_out)
    with pytest.raises(RuntimeError, match="not enough memory"):
        learn(*stack, tmp_path)


class Tokens(nn.Module):
    """Tokens come first, as inside torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.a, self.b, self.head = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).permute(2, 0, 1)
        return self.head(torch.relu(self.b(torch.relu(self.a(tokens)))).mean(0))


def test_units_end_where_images_lie_one_behind_the_other(tmp_path: Path) -> None:
    task, images = task_of(small.seeded(Tokens), tmp_path, images=20)
    assert [unit.name for unit in find_units(task.graph, task.plan)] == ["patch", "a", "b", "head"], (
        "the case is the one meant"
    )
    made = learn(task, images, tmp_path, count=20)
    check_integers(made, task)
    assert [(unit.name, unit.layers) for unit in made.record.units] == [("a+b", ("a", "b"))]


class ChannelsLast(nn.Module):
    """Maps whose channels are the last axis, as in Swin: 16 places, 24 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.a, self.b, self.head = (
            nn.Conv2d(3, 24, 4, 4),
            nn.Linear(24, 24),
            nn.Linear(24, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(self.patch(x).permute(0, 2, 3, 1)))))
        return self.head(x.mean((1, 2)))


def test_errors_are_summed_over_the_channels_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixport.quantize.learn.reconstruction import unit_learner as learner

    seen: list[tuple[tuple[int, ...], int]] = []

    class Noted(learner.UnitLoss):
        def __call__(self, got: Tensor, target: Tensor, images: Tensor) -> Tensor:
            seen.append((tuple(got.shape[1:]), self.channels(got)))
            return super().__call__(got, target, images)

    monkeypatch.setattr(learner, "UnitLoss", Noted)
    learn(*task_of(small.seeded(ChannelsLast), tmp_path), tmp_path, iters=1)
    assert seen and set(seen) == {((4, 4, 24), 24)}


def test_codes_never_run_away(
    stack: tuple[Task, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furthest: list[float] = []
    real = UnitLearner._finish

    def finish(self: UnitLearner, layers: Any, rounding: Rounding, params: Any) -> Any:
        furthest.append(float((rounding.codes_at.detach() + 0.5).abs().max()))  # 2 bits: from -2.5 to 1.5
        return real(self, layers, rounding, params)

    monkeypatch.setattr(UnitLearner, "_finish", finish)
    learn(*stack, tmp_path, preset=changed(DEFAULT, rounding_lr=3.0), iters=5)
    assert furthest == [2.0, 2.0]


def test_units_run_with_the_biases_that_ship(tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path)
    made = learn(task, images, tmp_path, iters=5)
    executor = Executor(
        task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=True, device=torch.device("cpu")
    )
    learner = UnitLearner(
        task=task, executor=executor, preset=DEFAULT, stage=DEFAULT.stages[0], iters=1, seed=0, batch=4
    )
    units = find_units(task.graph, task.plan)
    run_with = {
        layer: learner.state(unit, made.params, made.integers).weights(layer)
        for unit in units
        for layer in unit.layers
    }
    insert_activations(task.graph, task.plan, made.params, load_target("ort-cpu"))
    insert_weights(task.graph, task.widths, made.integers, load_target("ort-cpu"))
    for layer, found in run_with.items():
        assert found is not None
        for value, node in zip(found, layer.args[1:3], strict=True):
            codes, scales = (constant(task.graph, part) for part in node.args[:2])
            shipped = OPS.dequantize_weight.default(codes, scales, "", 8)
            weight_scales = constant(task.graph, layer.args[1].args[1])
            # Scales that exact requantisation moved take their channel with them.
            kept = weight_scales == torch.as_tensor(made.integers[layer].scales)
            assert kept.any() and torch.equal(value[kept], shipped[kept])
        assert not np.array_equal(found[1].numpy(), made.integers[layer].bias), "rounding does something"
