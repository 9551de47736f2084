"""Reconstruction of a whole model: unit after unit, each learned on what the quantised units before it give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from mixport.artifacts import Decision, Reconstruction, UnitRecord
from mixport.progress import Advance, Progress
from mixport.quantize.nearest import LayerIntegers
from mixport.quantize.plan import Plan
from mixport.quantize.reconstruction.caches import Activations, Room, fill
from mixport.quantize.reconstruction.execute import Executor
from mixport.quantize.reconstruction.merging import merge_neighbours
from mixport.quantize.reconstruction.optimise import UnitData
from mixport.quantize.reconstruction.perturbation import Behind
from mixport.quantize.reconstruction.state import UnitState
from mixport.quantize.reconstruction.unit_file import FinishedUnit, UnitShelf, read_unit, write_unit
from mixport.quantize.reconstruction.unit_learning import UnitLearner
from mixport.quantize.reconstruction.units import Unit, find_units, merge_units
from mixport.quantize.widths import LayerWidths
from mixport.quantspec import QuantParams
from mixport.reconstruction_preset import Preset, Stage


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be reconstructed: everything chosen before, which later units start from.

    Attributes:
        graph: captured float graph.
        plan: of this graph.
        widths: of its layers.
        params: calibrated, by site.
        integers: rounded to nearest, by layer.
        input_shape: [1, 3, H, W].
        dynamic_batch: True where the graph holds for every batch.
    """

    graph: fx.GraphModule
    plan: Plan
    widths: LayerWidths
    params: Mapping[str, QuantParams]
    integers: Mapping[fx.Node, LayerIntegers]
    input_shape: tuple[int, int, int, int]
    dynamic_batch: bool


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
    """Learn every unit in graph order, once for every stage of the preset.

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
    units = find_units(task.graph, task.plan, grain=preset.grain)
    if preset.merge > 0:
        units = merge_neighbours(units, task.widths, part=preset.merge)
    run = _Run(task=task, units=units, executor=_executor(task, room.device), preset=preset, iters=iters, seed=seed, room=room, shelf=shelf)
    batch = run.batch()
    source = fill(count, batch, images, room=room)
    if preset.mirrored:
        source = fill(2 * count, batch, _mirrored(source), room=room)
    outputs = run.outputs(source) if any(stage.asks_the_model for stage in preset.stages) else None
    made = _Made(params=dict(task.params), integers=dict(task.integers), records=[], decisions=[])
    total = sum(run.learner(stage).iters * len(run.todo(stage)) for stage in preset.stages)
    with progress.track("reconstruct", total=total, unit="steps") as advance:
        for number in range(len(preset.stages)):
            run.stage(number, source, outputs, made, advance)
    record = Reconstruction(preset=preset.name, iters=iters, images=count, units=tuple(made.records))
    return Reconstructed(params=made.params, integers=made.integers, record=record, decisions=tuple(made.decisions))


def _executor(task: Task, device: torch.device) -> Executor:
    return Executor(task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=task.dynamic_batch, device=device)


def _mirrored(source: Activations) -> Callable[[slice], Tensor]:
    """The images, and behind them the same ones mirrored left to right."""

    def values(part: slice) -> Tensor:
        wanted = torch.arange(part.start, part.stop)
        found = source.at(wanted % len(source))
        return torch.where((wanted >= len(source)).view(-1, 1, 1, 1).to(found.device), found.flip(3), found)

    return values


@dataclass(kw_only=True)
class _Made:
    """What was chosen so far, and what happened."""

    params: dict[str, QuantParams]
    integers: dict[fx.Node, LayerIntegers]
    records: list[UnitRecord]
    decisions: list[Decision]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What every unit of one run shares."""

    task: Task
    units: Sequence[Unit]
    executor: Executor
    preset: Preset
    iters: int
    seed: int
    room: Room
    shelf: UnitShelf

    def batch(self) -> int:
        """Images at once where nothing is learned."""
        pixels = self.task.input_shape[2] * self.task.input_shape[3]
        return int(np.clip(131072 // pixels, 4, 64))

    def learner(self, stage: Stage) -> UnitLearner:
        """Of one stage."""
        steps = stage.steps(self.iters)
        return UnitLearner(
            executor=self.executor, widths=self.task.widths, preset=self.preset, stage=stage, iters=steps, batch=self.batch()
        )

    def todo(self, stage: Stage) -> list[int]:
        """Units in which a stage learns something."""
        learner = self.learner(stage)
        return [index for index, unit in enumerate(self.units) if learner.names(unit)]

    def stage(self, number: int, source: Activations, outputs: Activations | None, made: _Made, advance: Advance) -> None:
        """One pass over all units.

        Args:
            number: of the stage.
            source: the images.
            outputs: of the float model, where the stage needs them.
            made: is changed.
            advance: of the bar.
        """
        stage, batch = self.preset.stages[number], self.batch()
        learner, todo = self.learner(stage), self.todo(stage)
        last = max(todo, default=-1)
        float_input = quantised_input = source
        for index, unit in enumerate(self.units[: last + 1]):
            float_output = fill(len(source), batch, self._forward(unit, float_input, None), room=self.room)
            if index in todo:
                data = UnitData(float_input=float_input, quantised_input=quantised_input, target=float_output)

                def report(steps: int, loss: float, at: str = unit.name) -> None:
                    advance(steps, f"{at}, loss {loss:.3g}")

                behind = self._behind(index, outputs) if stage.asks_the_model else None
                finished = self._unit(number, index, learner, data, made, behind=behind, advance=report)
                made.integers.update(finished.integers)
                made.params.update({name: learner.with_step(made.params[name], name, step) for name, step in finished.steps.items()})
                made.records.append(finished.record)
                made.decisions.extend(finished.decisions)
            if index < last:
                state = learner.state(unit, made.params, made.integers)
                quantised_input = fill(len(source), batch, self._forward(unit, quantised_input, state), room=self.room)
            float_input = float_output

    def outputs(self, source: Activations) -> Activations:
        """What the float model gives for every image."""
        return fill(len(source), self.batch(), self._forward(merge_units(self.units), source, None), room=self.room)

    def _behind(self, index: int, outputs: Activations | None) -> Behind | None:
        """The float model behind a unit."""
        if outputs is None:
            return None
        behind = self.units[index + 1 :]
        rest = merge_units(behind) if behind else None

        def run(value: Tensor, images: int) -> Tensor:
            return value if rest is None else self.executor.run(rest, value, images=images)

        return Behind(run=run, outputs=outputs)

    def _forward(self, unit: Unit, inputs: Activations, state: UnitState | None) -> Callable[[slice], Tensor]:
        """Outputs of a unit for some images."""

        def outputs(part: slice) -> Tensor:
            with torch.no_grad():
                return self.executor.run(unit, inputs.at(part), images=part.stop - part.start, quantised=state)

        return outputs

    def _unit(
        self,
        number: int,
        index: int,
        learner: UnitLearner,
        data: UnitData,
        made: _Made,
        *,
        behind: Behind | None,
        advance: Callable[[int, float], None],
    ) -> FinishedUnit:
        """Learn one unit, or take it from the shelf."""
        unit, place = self.units[index], number * len(self.units) + index
        names = {self.task.widths[layer].name: layer for layer in unit.layers}
        found = self.shelf.find(place)
        if found is not None:
            advance(learner.iters, 0.0)
            return read_unit(found, names)
        seed = self.seed * 7919 + place
        finished = learner.learn(unit, data, made.params, made.integers, behind=behind, seed=seed, advance=advance)
        with self.shelf.keep(place) as folder:
            write_unit(folder, finished, self.task.widths)
        return finished
