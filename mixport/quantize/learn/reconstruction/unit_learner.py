"""One unit: from rounding to nearest to learned integers and steps, or the reason why it stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.gradients import NotLearnedError
from mixport.quantize.integers.nearest import (
    LayerIntegers,
    float_weights,
    least_scales,
    read_params,
    read_site,
    scales_of_dead,
)
from mixport.quantize.learn.loop.checkpoints import FinishedUnit
from mixport.quantize.learn.reconstruction.least_squares import FloatLayer, Start, least_squares_start
from mixport.quantize.learn.reconstruction.losses import UnitLoss
from mixport.quantize.learn.reconstruction.optimise import (
    Learned,
    StepSize,
    UnitData,
    optimise,
    relative_error,
    step_size,
    values_a_weight,
)
from mixport.quantize.learn.reconstruction.perturbation import Behind, perturbation_hessian
from mixport.quantize.learn.reconstruction.rounding import LayerStart, Rounding
from mixport.quantize.learn.reconstruction.state import LEAST_FACTOR, UnitState
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.learn.reconstruction.unit_limits import (
    at_limit,
    learned_step,
    steps_with_room,
    widened_output,
)
from mixport.quantize.learn.reconstruction.variance import spread_of, widened
from mixport.quantize.learn.units.channel_axis import channel_axis
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.units import Unit
from mixport.quantize.scales.ranges import finish_carrier
from mixport.records.choices.reconstruction_preset import WIDEST_LEARNED, Preset, Stage
from mixport.records.choices.search import UnitRecord
from mixport.records.decision import Decision

_SETTLED = 0.45
"""How far from its code a weight may lie where learning starts from codes that are not the nearest ones."""
_LEAST_GAIN = 1.01
"""Less is not worth a decision: it moves the output by less than its error."""
_BIAS_STEPS = 15
"""Of the range that a layer reads: what biases move by does not depend on the width of the codes there."""

Params = Mapping[str, QuantParams]
Integers = Mapping[fx.Node, LayerIntegers]


@dataclass(frozen=True, kw_only=True)
class _Base:
    """A unit before it is learned.

    Attributes:
        error: of its output.
        what: its codes are, in words.
        started: layers whose codes are not the nearest ones.
    """

    error: float
    what: str
    started: Mapping[fx.Node, Start] = field(default_factory=dict[fx.Node, Start])


@dataclass(frozen=True, kw_only=True)
class UnitLearner:
    """What every unit of one run shares in one stage.

    Attributes:
        task: what is reconstructed.
        executor: of its graph.
        preset: the recipe.
        stage: of the recipe.
        iters: steps a unit in this stage.
        seed: of batches and masks.
        batch: images at once where nothing is learned.
    """

    task: Task
    executor: Executor
    preset: Preset
    stage: Stage
    iters: int
    seed: int
    batch: int

    def state(self, unit: Unit, params: Params, integers: Integers) -> UnitState:
        """The unit as it would ship with these parameters and integers, as far as the stage quantises it."""
        layers = {layer: integers[layer] for layer in unit.layers}
        sites = [site.name for site in self.executor.sites(unit)]
        reads = {layer: read_site(self.task.plan, layer).name for layer in unit.layers}
        return UnitState(
            params,
            layers,
            sites=sites,
            reads=reads,
            device=self.executor.device,
            activations=self.stage.activations,
        )

    def names(self, unit: Unit) -> tuple[list[fx.Node], list[str]] | None:
        """Layers and sites of a unit that are learned; None where there are none."""
        tied = {name for group in self.task.plan.groups for name in group.members}
        tied |= {site.name for site in self.task.plan.sites if site.fixed is not None}
        layers = [
            layer
            for layer in unit.layers
            if self.task.widths[layer].bits <= WIDEST_LEARNED and self.stage.rounding_lr > 0
        ]
        learns_steps = self.stage.activations and self.stage.step_lr > 0
        free = self.executor.sites(unit) if learns_steps else []
        sites = [site.name for site in free if site.bits <= WIDEST_LEARNED and site.name not in tied]
        return (layers, sites) if layers or sites else None

    def _reads_narrow(self, unit: Unit) -> bool:
        """True where activations of the unit have codes narrower than 8 bits: wider ones are hardly noise."""
        return any(site.bits <= WIDEST_LEARNED for site in self.executor.sites(unit))

    def with_steps(self, params: Params, steps: Mapping[str, float]) -> dict[str, QuantParams]:
        """All parameters, some with another step size; the code of an absorbed clamp's upper bound
        follows.
        """
        moved = dict(params)
        for site in self.task.plan.sites:
            if site.name in steps:
                old = params[site.name]
                moved[site.name] = finish_carrier(
                    scale=steps[site.name],
                    zero_point=old.zero_point,
                    bits=site.bits,
                    storage=old.storage,
                    bounds=site.bounds,
                )
        return moved

    def learn(
        self,
        index: int,
        unit: Unit,
        data: UnitData,
        params: Params,
        integers: Integers,
        *,
        behind: Behind | None = None,
        advance: Callable[[int, float], None],
    ) -> FinishedUnit:
        """Learn one unit; it stays as it was where that leaves less error, or where learning breaks down.

        Args:
            index: its own number in the run, part of the seed of its batches and masks.
            unit: which.
            data: its inputs and targets.
            params: of every site, as chosen so far.
            integers: of every layer, as chosen so far.
            behind: the float model behind the unit, where the stage asks for it.
            advance: is told the number of steps just done, and the latest loss.
        """
        seed = (self.seed * 7919 + index) % 2**63  # torch takes no larger one
        weights, unweighted = self._weights(unit, data, behind, seed=seed)
        before = relative_error(
            self.executor, unit, data, self.state(unit, params, integers), batch=self.batch, weights=weights
        )
        axis = channel_axis(unit.output, self.task.plan.kinds)
        loss = UnitLoss(self.stage, weights=weights, behind=behind, channel_axis=axis)
        size = step_size(self.executor, unit, data, wanted=self.preset.batch)
        channels = loss.channels(data.target.at(slice(0, 1)))
        stage = self.stage.for_unit(values_a_weight(unit, data.target, channels=channels))
        base = _Base(
            error=before,
            what="rounded to nearest"
            if self.stage.name == self.preset.stages[0].name
            else f"as before the stage of {self.stage.name}",
        )
        try:
            if not math.isfinite(before):
                raise NotLearnedError("the error of its output is no finite number")
            base = self._base(unit, data, params, integers, base, weights=weights)
            steps, learned, decisions = self._attempt(
                unit,
                data,
                params,
                integers,
                loss,
                started=base.started,
                stage=stage,
                size=size,
                seed=seed,
                advance=advance,
            )
            shipped = self.state(unit, self.with_steps(params, steps), {**integers, **learned})
            after = relative_error(self.executor, unit, data, shipped, batch=self.batch, weights=weights)
            if not after <= base.error:
                raise NotLearnedError(f"the error of its output would be {after:.3g}, not {base.error:.3g}")
            if self.stage.keeps_variance and unit.output in learned and self._reads_narrow(unit):
                spread = spread_of(self.executor, unit, data, shipped, batch=self.batch, channel_axis=axis)
                if spread.gain > _LEAST_GAIN:
                    learned = {**learned, unit.output: widened(learned[unit.output], spread)}
                    shipped = self.state(unit, self.with_steps(params, steps), {**integers, **learned})
                    after = relative_error(
                        self.executor, unit, data, shipped, batch=self.batch, weights=weights
                    )
                    decisions = [*decisions, widened_output(unit, spread)]
        except NotLearnedError as problem:
            steps, learned, after = (
                {},
                {layer: start.integers for layer, start in base.started.items()},
                base.error,
            )
            decisions = [Decision(where=unit.name, what=f"left {base.what}", why=str(problem))]
        record = UnitRecord(
            name=unit.name if len(self.preset.stages) == 1 else f"{unit.name} ({self.stage.name})",
            layers=tuple(self.task.widths[layer].name for layer in learned),
            sites=tuple(steps),
            error_before=before if math.isfinite(before) else None,
            error_after=after if math.isfinite(after) else None,
            batch=size.images,
            dropped=stage.input_drop,
        )
        return FinishedUnit(integers=learned, steps=steps, record=record, decisions=(*unweighted, *decisions))

    def _base(
        self,
        unit: Unit,
        data: UnitData,
        params: Params,
        integers: Integers,
        nearest: _Base,
        *,
        weights: Tensor | None,
    ) -> _Base:
        """What learning starts from and must not fall behind: codes of least squared error where the stage
        wants them and they help.
        """
        layers, _ = self.names(unit) or ([], [])
        if not self.stage.least_squares or not layers:
            return nearest
        wanted = [
            FloatLayer(
                node=layer,
                weight=torch.as_tensor(float_weights(self.task.graph, layer)[0]),
                bits=self.task.widths[layer].bits,
                x_scale=read_params(self.task.plan, layer, params).scale,
            )
            for layer in layers
        ]

        def state(chosen: Integers) -> UnitState:
            return self.state(unit, params, {**integers, **chosen})

        started = least_squares_start(
            self.executor,
            unit,
            data,
            wanted,
            integers,
            state=state,
            batch=self.batch,
            grid=self.task.grid,
        )
        shipped = state({layer: start.integers for layer, start in started.items()})
        error = relative_error(self.executor, unit, data, shipped, batch=self.batch, weights=weights)
        return (
            _Base(error=error, what="at codes of least squared error", started=started)
            if error <= nearest.error
            else nearest
        )

    def _weights(
        self, unit: Unit, data: UnitData, behind: Behind | None, *, seed: int
    ) -> tuple[Tensor | None, list[Decision]]:
        """Of the output's elements, None where all count alike; and the reason where they should not."""
        if self.stage.loss != "aph" or behind is None:
            return None, []
        signs = torch.Generator().manual_seed(seed) if self.stage.random_signs else None
        try:
            found = perturbation_hessian(
                behind, data.target, temperature=self.stage.temperature, batch=self.batch, signs=signs
            )
            if not bool(torch.isfinite(found).all()) or not bool(found.any()):
                raise NotLearnedError(
                    "what the float model behind it makes of a perturbation is zero everywhere or no "
                    "finite number"
                )
        except NotLearnedError as problem:
            return None, [
                Decision(where=unit.name, what="errors of its output weighted alike", why=str(problem))
            ]
        return found, []

    def _attempt(
        self,
        unit: Unit,
        data: UnitData,
        params: Params,
        integers: Integers,
        loss: UnitLoss,
        *,
        started: Mapping[fx.Node, Start],
        stage: Stage,
        size: StepSize,
        seed: int,
        advance: Callable[[int, float], None],
    ) -> tuple[dict[str, float], dict[fx.Node, LayerIntegers], list[Decision]]:
        """Steps, integers, and what wanted to leave its range. Raises NotLearnedError."""
        layers, sites = self.names(unit) or ([], [])
        integers = {**integers, **{layer: start.integers for layer, start in started.items()}}
        state = self.state(unit, params, integers)
        starts = [
            self.start(layer, integers[layer], params, mean=started[layer].mean if layer in started else None)
            for layer in layers
        ]
        rounding = (
            Rounding(starts, method=self.preset.rounding, absolute=self.stage.absolute) if starts else None
        )
        iters = stage.within_passes(self.iters, images=len(data.target), batch=size.images)
        fewer: list[Decision] = []
        if iters < self.iters:
            why = (
                f"{stage.passes} passes over the images; with so few values for each weight more would "
                "fit their noise"
            )
            fewer.append(
                Decision(where=unit.name, what=f"learned in {iters} steps, not {self.iters}", why=why)
            )
        optimise(
            self.executor,
            unit,
            data,
            state,
            Learned(layers=layers, rounding=rounding, sites=sites),
            stage=stage,
            loss=loss,
            size=size,
            iters=iters,
            seed=seed,
            advance=advance,
        )
        steps = {name: learned_step(params[name], factor) for name, factor in state.factors.items()}
        fixed = [layer for layer in unit.layers if layer not in layers]
        steps, kept = steps_with_room(self.task, steps, fixed, params, integers)
        learned = {} if rounding is None else self._finish(layers, rounding, self.with_steps(params, steps))
        return steps, learned, [*fewer, *at_limit(unit, state, rounding), *kept]

    def start(
        self, layer: fx.Node, integers: LayerIntegers, params: Params, *, mean: Tensor | None = None
    ) -> LayerStart:
        """A layer as its rounding is learned from: float weights, and scales that leave room for the bias."""
        weight, bias = float_weights(self.task.graph, layer)[0], integers.bias
        x_scale = read_params(self.task.plan, layer, params).scale
        levels = 2 ** read_site(self.task.plan, layer).bits - 1
        # Room for a bias that grows to twice its size while the step of the input shrinks as far as it may.
        least = least_scales(
            None if bias is None else 2 * bias,
            len(integers.scales),
            x_scale=x_scale * LEAST_FACTOR,
            grid=self.task.grid,
        )
        norm = np.sqrt(np.square(weight.reshape(len(weight), -1).astype(np.float64)).sum(1))
        device = self.executor.device
        if self.stage.least_squares:
            wide = integers.scales.reshape(-1, *[1] * (weight.ndim - 1))
            weight = (
                np.clip(weight / wide, integers.codes - _SETTLED, integers.codes + _SETTLED) * wide
            ).astype(np.float32)
        return LayerStart(
            weight=torch.as_tensor(weight, device=device),
            bias=None if bias is None else torch.as_tensor(bias, device=device),
            # Codes start as weight / scale: a scale below the least would be raised behind their back.
            scales=torch.as_tensor(np.maximum(integers.scales, least), device=device),
            least=torch.as_tensor(least, device=device),
            bias_unit=torch.as_tensor(
                (norm * x_scale * levels / _BIAS_STEPS).astype(np.float32), device=device
            ),
            bits=self.task.widths[layer].bits,
            mean=mean,
        )

    def _finish(
        self, layers: Sequence[fx.Node], rounding: Rounding, params: Params
    ) -> dict[fx.Node, LayerIntegers]:
        """The learned weights as stored integers; `params` as they will ship."""
        made: dict[fx.Node, LayerIntegers] = {}
        with torch.no_grad():
            for number, (layer, codes) in enumerate(
                zip(layers, rounding.split(rounding.codes(hard=True)), strict=True)
            ):
                bias = rounding.bias(number)
                bias_values = None if bias is None else bias.cpu().numpy().astype(np.float32)
                stored = codes.cpu().numpy().astype(np.int8)
                x_scale = read_params(self.task.plan, layer, params).scale
                scales = scales_of_dead(
                    bias_values,
                    rounding.scales(number).cpu().numpy(),
                    stored,
                    x_scale=x_scale,
                    grid=self.task.grid,
                )
                made[layer] = LayerIntegers(scales=scales, codes=stored, bias=bias_values)
        return made
