"""Reconstruction of a whole model: unit after unit, each learned on what the quantised units before it
give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.run import images_at_once
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.loop.activation_store import Activations, ActivationStore, fill
from mixport.quantize.learn.loop.checkpoints import FinishedUnit, UnitCheckpoints, read_unit, write_unit
from mixport.quantize.learn.loop.float32 import in_float32
from mixport.quantize.learn.reconstruction.optimise import UnitData
from mixport.quantize.learn.reconstruction.perturbation import Behind
from mixport.quantize.learn.reconstruction.state import UnitState
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.learn.reconstruction.unit_learner import UnitLearner
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.merging import merge_neighbours
from mixport.quantize.learn.units.units import Unit, find_units, merge_units
from mixport.records.choices.reconstruction_preset import Preset
from mixport.records.choices.search import Reconstruction, UnitRecord
from mixport.records.decision import Decision
from mixport.records.machine import compute_threads
from mixport.records.progress import Advance, Progress


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
    store: ActivationStore,
    checkpoints: UnitCheckpoints,
    progress: Progress,
) -> Reconstructed:
    """Learn every unit in graph order, once for every stage of the preset.

    Args:
        task: see Task.
        images: float32 [N, 3, H, W], preprocessed, for a slice of the `count` calibration images.
        count: of the images.
        preset: how.
        iters: steps a unit, which stages take their shares of.
        seed: of batches and masks.
        store: where activations are kept, and the device.
        checkpoints: finished units; an interrupted run resumes after them.
        progress: one bar over all steps.
    """
    executor = Executor(
        task.graph,
        task.plan,
        input_shape=task.input_shape,
        dynamic_batch=task.dynamic_batch,
        device=store.device,
    )
    units = _split_by_image(find_units(task.graph, task.plan, grain=preset.grain), executor)
    if preset.merge > 0:
        units = list(merge_neighbours(units, task.widths, part=preset.merge))
    batch = images_at_once(task.input_shape)
    learners = [
        UnitLearner(
            task=task,
            executor=executor,
            preset=preset,
            stage=stage.on(task.grid),
            iters=stage.steps(iters),
            seed=seed,
            batch=batch,
        )
        for stage in preset.stages
    ]
    made = _Made(params=dict(task.params), integers=dict(task.integers))
    if task.grid.power_of_two and any(stage.step_lr > 0 for stage in preset.stages):
        why = "the target's scales are powers of two"
        made.decisions.append(
            Decision(where="reconstruction", what="activation steps kept as calibrated", why=why)
        )
    if not task.grid.moves_freely and any(
        stage.scale_lr > 0 or stage.least_squares for stage in preset.stages
    ):
        why = "the target's weight scales are " + (
            "powers of two" if task.grid.power_of_two else "one a tensor"
        )
        made.decisions.append(
            Decision(where="reconstruction", what="weight scales kept as calibrated", why=why)
        )

    def source() -> Activations:
        first = fill(count, batch, images, store=store)
        return fill(2 * count, batch, _mirrored(first), store=store) if preset.mirrored else first

    passes = [
        _Pass(learner=learner, units=units, first=number * len(units))
        for number, learner in enumerate(learners)
    ]
    total = sum(one.learner.iters * len(one.todo) for one in passes)
    with in_float32(store.device), progress.track("reconstruct", total=total, unit="steps") as advance:
        for one in passes:
            if one.todo:
                one.run(source, made, store=store, checkpoints=checkpoints, advance=advance)
    record = Reconstruction(
        preset=preset.name,
        iters=iters,
        images=count,
        seed=seed,
        device=store.device.type,
        threads=compute_threads(),
        units=tuple(made.records),
    )
    return Reconstructed(
        params=made.params, integers=made.integers, record=record, decisions=tuple(made.decisions)
    )


@dataclass(kw_only=True)
class _Made:
    """What was chosen so far, and what happened."""

    params: dict[str, QuantParams]
    integers: dict[fx.Node, LayerIntegers]
    records: list[UnitRecord] = field(default_factory=list[UnitRecord])
    decisions: list[Decision] = field(default_factory=list[Decision])


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One stage: a walk over the units, each learned on what the ones before it give.

    Attributes:
        learner: of the stage.
        units: in graph order.
        first: number of the first unit in the run; every unit of every stage has its own.
    """

    learner: UnitLearner
    units: Sequence[Unit]
    first: int

    @cached_property
    def todo(self) -> set[int]:
        """Units in which something is learned."""
        return {index for index, unit in enumerate(self.units) if self.learner.names(unit) is not None}

    def run(
        self,
        source: Callable[[], Activations],
        made: _Made,
        *,
        store: ActivationStore,
        checkpoints: UnitCheckpoints,
        advance: Advance,
    ) -> None:
        """Learn what there is to learn, from the images on.

        Args:
            source: makes the images' tensor; not the tensor, so that its space goes behind the first unit.
            made: is changed.
            store: where activations are kept.
            checkpoints: of finished units.
            advance: of the bar.
        """
        learner, last = self.learner, max(self.todo)
        executor, batch = learner.executor, learner.batch
        float_input, outputs = source(), None
        if learner.stage.asks_the_model:
            outputs = fill(
                len(float_input),
                batch,
                _outputs(executor, merge_units(self.units), float_input, None),
                store=store,
            )
        quantised_input = float_input
        for index, unit in enumerate(self.units[: last + 1]):
            float_output = fill(
                len(float_input), batch, _outputs(executor, unit, float_input, None), store=store
            )
            if index in self.todo:
                data = UnitData(float_input=float_input, quantised_input=quantised_input, target=float_output)
                behind = (
                    None
                    if outputs is None
                    else Behind(run=_rest(executor, self.units[index + 1 :]), outputs=outputs)
                )
                found = _finished(
                    learner,
                    self.first + index,
                    unit,
                    data,
                    made,
                    behind=behind,
                    checkpoints=checkpoints,
                    advance=advance,
                )
                made.integers.update(found.integers)
                made.params = learner.with_steps(made.params, found.steps)
                made.records.append(found.record)
                made.decisions.extend(found.decisions)
                del data
            if index < last:
                state = learner.state(unit, made.params, made.integers)
                quantised_input = fill(
                    len(float_input), batch, _outputs(executor, unit, quantised_input, state), store=store
                )
            float_input = float_output


def _finished(
    learner: UnitLearner,
    index: int,
    unit: Unit,
    data: UnitData,
    made: _Made,
    *,
    behind: Behind | None,
    checkpoints: UnitCheckpoints,
    advance: Advance,
) -> FinishedUnit:
    """One unit, taken from its checkpoint or learned and kept."""
    found = checkpoints.find(index)
    if found is not None:
        advance(learner.iters, f"{unit.name}, from the cache")
        return read_unit(found, {learner.task.widths[layer].name: layer for layer in unit.layers})
    done = 0

    def report(steps: int, loss: float) -> None:
        nonlocal done
        done += steps
        advance(steps, f"{unit.name}, loss {loss:.3g}")

    learned = learner.learn(index, unit, data, made.params, made.integers, behind=behind, advance=report)
    advance(learner.iters - done)
    with checkpoints.keep(index) as folder:
        write_unit(folder, learned, learner.task.widths)
    return learned


def _split_by_image(units: tuple[Unit, ...], executor: Executor) -> list[Unit]:
    """Units joined until each gives its images one behind the other; torch's own attention puts tokens first
    in between.
    """
    found: list[Unit] = []
    waiting: list[Unit] = []
    in_order = executor.nodes_by_image(unit.output for unit in units[:-1])
    for unit in units:
        waiting.append(unit)
        if unit.output in in_order or unit is units[-1]:
            found.append(merge_units(waiting))
            waiting = []
    return found


def _outputs(
    executor: Executor, unit: Unit, inputs: Activations, state: UnitState | None
) -> Callable[[slice], Tensor]:
    """Outputs of a unit for some images."""

    def values(part: slice) -> Tensor:
        with torch.no_grad():
            return executor.run(unit, inputs.at(part), images=part.stop - part.start, quantised=state)

    return values


def _rest(executor: Executor, units: Sequence[Unit]) -> Callable[[Tensor, int], Tensor]:
    """The float model from the first of these units on; where there are none, the value itself."""
    rest = merge_units(units) if units else None
    return lambda value, images: value if rest is None else executor.run(rest, value, images=images)


def _mirrored(source: Activations) -> Callable[[slice], Tensor]:
    """The images, and behind them the same ones mirrored left to right."""

    def values(part: slice) -> Tensor:
        wanted = torch.arange(part.start, part.stop, device=source.device)
        found = source.at(wanted % len(source))
        return torch.where((wanted >= len(source)).view(-1, 1, 1, 1), found.flip(3), found)

    return values
