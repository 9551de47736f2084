"""Reconstruction of a whole model: unit after unit, each learned on what the quantised units before it give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from mixport.artifacts import Decision, Reconstruction, UnitRecord
from mixport.devices import compute_threads
from mixport.progress import Advance, Progress
from mixport.quantize.nearest import LayerIntegers
from mixport.quantize.reconstruction.caches import Activations, Room, fill
from mixport.quantize.reconstruction.execute import Executor
from mixport.quantize.reconstruction.learner import UnitLearner
from mixport.quantize.reconstruction.optimise import UnitData
from mixport.quantize.reconstruction.state import UnitState
from mixport.quantize.reconstruction.task import Task
from mixport.quantize.reconstruction.unit_file import FinishedUnit, UnitShelf, read_unit, write_unit
from mixport.quantize.reconstruction.units import Unit, find_units, merge_units
from mixport.quantspec import QuantParams
from mixport.reconstruction_preset import Preset


@dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """Parameters and integers to insert, and what happened."""

    params: dict[str, QuantParams]
    integers: dict[fx.Node, LayerIntegers]
    record: Reconstruction
    decisions: tuple[Decision, ...]


def reconstruct(
    task: Task,
    images: Callable[[slice], Tensor],
    *,
    count: int,
    preset: Preset,
    iters: int,
    seed: int,
    room: Room,
    shelf: UnitShelf,
    progress: Progress,
) -> Reconstructed:
    """Learn every unit in graph order.

    Args:
        task: see Task.
        images: float32 [N, 3, H, W], preprocessed, for a slice of the `count` calibration images.
        count: of the images.
        preset: how.
        iters: steps a unit.
        seed: of batches and masks.
        room: where activations are kept, and the device.
        shelf: finished units; a run that was interrupted goes on behind them.
        progress: one bar over all steps.
    """
    executor = Executor(task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=task.dynamic_batch, device=room.device)
    units = _by_image(find_units(task.graph, task.plan, grain=preset.grain), executor)
    batch = int(np.clip(131072 // (task.input_shape[2] * task.input_shape[3]), 4, 64))
    learner = UnitLearner(task=task, executor=executor, preset=preset, iters=iters, seed=seed, batch=batch)
    params, integers = dict(task.params), dict(task.integers)
    records: list[UnitRecord] = []
    decisions: list[Decision] = []
    if task.fixed_steps and preset.step_lr > 0:
        why = "the target's scales are powers of two"
        decisions.append(Decision(where="reconstruction", what="activation steps kept as calibrated", why=why))
    todo = {index for index, unit in enumerate(units) if learner.names(unit) is not None}
    last = max(todo, default=-1)
    with _float32(room.device), progress.track("reconstruct", total=iters * len(todo), unit="steps") as advance:
        float_input = fill(count, batch, images, room=room)
        if preset.mirrored:
            float_input = fill(2 * count, batch, _mirrored(float_input), room=room)
        quantised_input = float_input
        for index, unit in enumerate(units[: last + 1]):
            float_output = fill(len(float_input), batch, _outputs(executor, unit, float_input, None), room=room)
            if index in todo:
                data = UnitData(float_input=float_input, quantised_input=quantised_input, target=float_output)
                made = _finished(learner, index, unit, data, params, integers, shelf=shelf, advance=advance)
                integers.update(made.integers)
                params = learner.with_steps(params, made.steps)
                records.append(made.record)
                decisions.extend(made.decisions)
                del data
            if index < last:
                state = learner.state(unit, params, integers)
                quantised_input = fill(len(float_input), batch, _outputs(executor, unit, quantised_input, state), room=room)
            float_input = float_output
    record = Reconstruction(
        preset=preset.name,
        iters=iters,
        images=count,
        seed=seed,
        device=room.device.type,
        threads=compute_threads(),
        units=tuple(records),
    )
    return Reconstructed(params=params, integers=integers, record=record, decisions=tuple(decisions))


def _finished(
    learner: UnitLearner,
    index: int,
    unit: Unit,
    data: UnitData,
    params: dict[str, QuantParams],
    integers: dict[fx.Node, LayerIntegers],
    *,
    shelf: UnitShelf,
    advance: Advance,
) -> FinishedUnit:
    """One unit, taken from the shelf or learned and put there."""
    found = shelf.find(index)
    if found is not None:
        advance(learner.iters, f"{unit.name}, from the cache")
        return read_unit(found, {learner.task.widths[layer].name: layer for layer in unit.layers})
    done = 0

    def report(steps: int, loss: float) -> None:
        nonlocal done
        done += steps
        advance(steps, f"{unit.name}, loss {loss:.3g}")

    made = learner.learn(index, unit, data, params, integers, advance=report)
    advance(learner.iters - done)
    with shelf.keep(index) as folder:
        write_unit(folder, made, learner.task.widths)
    return made


def _by_image(units: tuple[Unit, ...], executor: Executor) -> list[Unit]:
    """Units joined until each gives its images one behind the other; torch's own attention puts tokens first in between."""
    found: list[Unit] = []
    waiting: list[Unit] = []
    for unit in units:
        waiting.append(unit)
        if executor.is_by_image(unit.output) or unit is units[-1]:
            found.append(merge_units(waiting))
            waiting = []
    return found


def _outputs(executor: Executor, unit: Unit, inputs: Activations, state: UnitState | None) -> Callable[[slice], Tensor]:
    """Outputs of a unit for some images."""

    def values(part: slice) -> Tensor:
        with torch.no_grad():
            return executor.run(unit, inputs.at(part), images=part.stop - part.start, quantised=state)

    return values


def _mirrored(source: Activations) -> Callable[[slice], Tensor]:
    """The images, and behind them the same ones mirrored left to right."""

    def values(part: slice) -> Tensor:
        wanted = torch.arange(part.start, part.stop, device=source.device)
        found = source.at(wanted % len(source))
        return torch.where((wanted >= len(source)).view(-1, 1, 1, 1), found.flip(3), found)

    return values


def _float32(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA, convolutions in float32 proper, and by algorithms that give the same sum each time."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
