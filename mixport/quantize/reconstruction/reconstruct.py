"""Reconstruction of a whole model: unit after unit, each learned on what the quantised units before it give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from mixport.artifacts import Decision, Reconstruction, UnitRecord
from mixport.progress import Progress
from mixport.quantize.nearest import LayerIntegers, float_weights, least_scales, read_params, scales_of_dead
from mixport.quantize.plan import Plan
from mixport.quantize.ranges import finish_carrier
from mixport.quantize.reconstruction.caches import Activations, Room, fill
from mixport.quantize.reconstruction.execute import Executor
from mixport.quantize.reconstruction.optimise import Learned, LossNotFiniteError, UnitData, optimise, relative_error
from mixport.quantize.reconstruction.rounding import LayerStart, Rounding
from mixport.quantize.reconstruction.state import LARGEST_FACTOR, LEAST_FACTOR, UnitState
from mixport.quantize.reconstruction.unit_file import FinishedUnit, UnitShelf, read_unit, write_unit
from mixport.quantize.reconstruction.units import Unit, find_units
from mixport.quantize.widths import LayerWidths
from mixport.quantspec import QuantParams
from mixport.reconstruction_preset import WIDEST_LEARNED, Preset


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
    units = find_units(task.graph, task.plan, grain=preset.grain)
    executor = Executor(task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=task.dynamic_batch, device=room.device)
    run = _Run(task=task, executor=executor, preset=preset, iters=iters, seed=seed, room=room, shelf=shelf)
    params, integers = dict(task.params), dict(task.integers)
    records: list[UnitRecord] = []
    decisions: list[Decision] = []
    batch = run.batch()
    source = fill(count, batch, images, room=room)
    if preset.mirrored:
        source = fill(2 * count, batch, _mirrored(source), room=room)
    float_input = quantised_input = source
    todo = [index for index, unit in enumerate(units) if run.learned_names(unit)]
    last = max(todo, default=-1)
    with progress.track("reconstruct", total=iters * len(todo), unit="steps") as advance:
        for index, unit in enumerate(units[: last + 1]):
            float_output = fill(len(source), batch, run.forward(unit, float_input, None), room=room)
            state = run.state(unit, params, integers)
            if index in todo:
                data = UnitData(float_input=float_input, quantised_input=quantised_input, target=float_output)

                def report(steps: int, loss: float, at: str = unit.name) -> None:
                    advance(steps, f"{at}, loss {loss:.3g}")

                made = run.unit(index, unit, data, params, integers, advance=report)
                integers.update(made.integers)
                params.update({name: run.with_step(params[name], name, step) for name, step in made.steps.items()})
                records.append(made.record)
                decisions.extend(made.decisions)
                state = run.state(unit, params, integers)
            if index < last:
                quantised_input = fill(len(source), batch, run.forward(unit, quantised_input, state), room=room)
            float_input = float_output
    record = Reconstruction(preset=preset.name, iters=iters, images=count, units=tuple(records))
    return Reconstructed(params=params, integers=integers, record=record, decisions=tuple(decisions))


def _mirrored(source: Activations) -> Callable[[slice], Tensor]:
    """The images, and behind them the same ones mirrored left to right."""

    def values(part: slice) -> Tensor:
        wanted = torch.arange(part.start, part.stop)
        found = source.at(wanted % len(source))
        return torch.where((wanted >= len(source)).view(-1, 1, 1, 1).to(found.device), found.flip(3), found)

    return values


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What every unit of one run shares."""

    task: Task
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

    def forward(self, unit: Unit, inputs: Activations, state: UnitState | None) -> Callable[[slice], Tensor]:
        """Outputs of a unit for some images."""

        def outputs(part: slice) -> Tensor:
            with torch.no_grad():
                return self.executor.run(unit, inputs.at(part), images=part.stop - part.start, quantised=state)

        return outputs

    def state(self, unit: Unit, params: Mapping[str, QuantParams], integers: Mapping[fx.Node, LayerIntegers]) -> UnitState:
        """The unit as it would ship with these parameters and integers."""
        layers = {layer: integers[layer] for layer in unit.layers}
        return UnitState(params, layers, sites=[site.name for site in self.executor.sites(unit)], device=self.room.device)

    def learned_names(self, unit: Unit) -> tuple[list[fx.Node], list[str]] | None:
        """Layers and sites of a unit that are learned; None where there are none."""
        tied = {name for group in self.task.plan.groups for name in group.members}
        layers = [layer for layer in unit.layers if self.task.widths[layer].bits <= WIDEST_LEARNED]
        sites = [site.name for site in self.executor.sites(unit) if site.bits <= WIDEST_LEARNED and site.name not in tied]
        learned = layers or (sites and self.preset.step_lr > 0)
        return (layers, sites) if learned else None

    def unit(
        self,
        index: int,
        unit: Unit,
        data: UnitData,
        params: Mapping[str, QuantParams],
        integers: Mapping[fx.Node, LayerIntegers],
        *,
        advance: Callable[[int, float], None],
    ) -> FinishedUnit:
        """Learn one unit, or take it from the shelf."""
        names = {self.task.widths[layer].name: layer for layer in unit.layers}
        found = self.shelf.find(index)
        if found is not None:
            advance(self.iters, 0.0)
            return read_unit(found, names)
        made = self._learn(index, unit, data, params, integers, advance=advance)
        with self.shelf.keep(index) as folder:
            write_unit(folder, made, self.task.widths)
        return made

    def _learn(
        self,
        index: int,
        unit: Unit,
        data: UnitData,
        params: Mapping[str, QuantParams],
        integers: Mapping[fx.Node, LayerIntegers],
        *,
        advance: Callable[[int, float], None],
    ) -> FinishedUnit:
        layers, sites = self.learned_names(unit) or ([], [])
        state = self.state(unit, params, integers)
        before = relative_error(self.executor, unit, data, state, batch=self.batch())
        starts = [self._start(layer, integers[layer], params) for layer in layers]
        rounding = Rounding(starts, method=self.preset.rounding) if starts else None
        decisions: list[Decision] = []
        try:
            optimise(
                self.executor,
                unit,
                data,
                state,
                Learned(layers=layers, rounding=rounding, sites=sites),
                preset=self.preset,
                iters=self.iters,
                seed=self.seed * 7919 + index,
                advance=advance,
            )
            steps = {name: _step(params[name], factor) for name, factor in state.factors.items()}
            learned = {} if rounding is None else self._finish(layers, rounding, params, integers)
            decisions += _at_limit(unit, state, rounding)
            moved = {**params, **{name: self.with_step(params[name], name, step) for name, step in steps.items()}}
            shipped = self.state(unit, moved, {**integers, **learned})
            after = relative_error(self.executor, unit, data, shipped, batch=self.batch())
            why = f"the error of its output would be {after:.3g}, not {before:.3g}"
        except LossNotFiniteError as problem:
            steps, learned, after, why = {}, {}, float("nan"), str(problem)
        if not after <= before:
            decisions.append(Decision(where=unit.name, what="left rounded to nearest", why=why))
            steps, learned, after = {}, {}, before
        record = UnitRecord(
            name=unit.name,
            layers=tuple(self.task.widths[layer].name for layer in learned),
            sites=tuple(steps),
            error_before=before,
            error_after=after,
        )
        return FinishedUnit(integers=learned, steps=steps, record=record, decisions=tuple(decisions))

    def _start(self, layer: fx.Node, integers: LayerIntegers, params: Mapping[str, QuantParams]) -> LayerStart:
        weight, bias = float_weights(self.task.graph, layer)
        x_scale = read_params(self.task.plan, layer, params).scale
        # Room for a bias that grows to twice its size while the step of the input shrinks as far as it may.
        least = least_scales(None if bias is None else 2 * bias, len(integers.scales), x_scale=x_scale * LEAST_FACTOR)
        norm = np.sqrt(np.square(weight.reshape(len(weight), -1).astype(np.float64)).sum(1))
        device = self.room.device
        return LayerStart(
            weight=torch.as_tensor(weight, device=device),
            bias=None if bias is None else torch.as_tensor(bias, device=device),
            scales=torch.as_tensor(integers.scales, device=device),
            least=torch.as_tensor(least, device=device),
            bias_unit=torch.as_tensor((norm * x_scale).astype(np.float32), device=device),
            bits=self.task.widths[layer].bits,
        )

    def _finish(
        self, layers: list[fx.Node], rounding: Rounding, params: Mapping[str, QuantParams], integers: Mapping[fx.Node, LayerIntegers]
    ) -> dict[fx.Node, LayerIntegers]:
        """The learned weights as stored integers."""
        made: dict[fx.Node, LayerIntegers] = {}
        with torch.no_grad():
            for number, (layer, codes) in enumerate(zip(layers, rounding.split_codes(hard=True), strict=True)):
                bias = rounding.bias(number)
                bias_values = None if bias is None else bias.cpu().numpy().astype(np.float32)
                stored = codes.cpu().numpy().astype(np.int8)
                x_scale = read_params(self.task.plan, layer, params).scale
                scales = scales_of_dead(bias_values, rounding.scales(number).cpu().numpy(), stored, x_scale=x_scale)
                made[layer] = LayerIntegers(scales=scales, codes=stored, bias=bias_values)
        return made

    def with_step(self, params: QuantParams, name: str, step: float) -> QuantParams:
        """Parameters of a site with another step size; the code of an absorbed clamp's upper bound follows."""
        site = next(site for site in self.task.plan.sites if site.name == name)
        return finish_carrier(scale=step, zero_point=params.zero_point, bits=site.bits, storage=params.storage, bounds=site.bounds)


def _step(params: QuantParams, factor: Tensor) -> float:
    return float(np.float32(params.scale * float(factor.clamp(LEAST_FACTOR, LARGEST_FACTOR))))


def _at_limit(unit: Unit, state: UnitState, rounding: Rounding | None) -> list[Decision]:
    """What wanted to leave its range: named, and held at its limit."""
    found = [
        Decision(where=name, what=f"activation step held at {limit} times its calibrated size", why="reconstruction drove it further")
        for name, factor in state.factors.items()
        for limit in (LEAST_FACTOR, LARGEST_FACTOR)
        if (float(factor) <= limit if limit < 1 else float(factor) >= limit)
    ]
    if rounding is not None:
        channels = sum(rounding.at_floor(number) for number in range(len(rounding.layers)))
        if channels:
            what = f"weight scale of {channels} channels held at its floor"
            found.append(Decision(where=unit.name, what=what, why="reconstruction drove it towards zero"))
    return found
