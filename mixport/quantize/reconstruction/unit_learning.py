"""One unit: learned, measured before and after, and kept only where its output came closer to the float one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from mixport.artifacts import Decision, UnitRecord
from mixport.quantize.nearest import LayerIntegers, float_weights, least_scales, read_params, scales_of_dead
from mixport.quantize.plan import Plan
from mixport.quantize.ranges import finish_carrier
from mixport.quantize.reconstruction.execute import Executor
from mixport.quantize.reconstruction.losses import UnitLoss
from mixport.quantize.reconstruction.optimise import Learned, LossNotFiniteError, UnitData, optimise, relative_error
from mixport.quantize.reconstruction.perturbation import Behind, perturbation_hessian
from mixport.quantize.reconstruction.rounding import LayerStart, Rounding
from mixport.quantize.reconstruction.state import LARGEST_FACTOR, LEAST_FACTOR, UnitState
from mixport.quantize.reconstruction.unit_file import FinishedUnit
from mixport.quantize.reconstruction.units import Unit
from mixport.quantize.widths import LayerWidths
from mixport.quantspec import QuantParams
from mixport.reconstruction_preset import Preset, Stage

WIDEST_LEARNED = 7
"""8-bit weights and activations are rounded to nearest: their error is small, and the pair bound holds their codes."""


@dataclass(frozen=True, kw_only=True)
class UnitLearner:
    """Learns units in one stage, all with the same settings.

    Attributes:
        executor: of the graph.
        widths: of its layers.
        preset: the recipe.
        stage: of the preset.
        iters: steps a unit in this stage.
        batch: images at once where nothing is learned.
    """

    executor: Executor
    widths: LayerWidths
    preset: Preset
    stage: Stage
    iters: int
    batch: int

    @property
    def plan(self) -> Plan:
        """Of the graph."""
        return self.executor.plan

    def state(self, unit: Unit, params: Mapping[str, QuantParams], integers: Mapping[fx.Node, LayerIntegers]) -> UnitState:
        """The unit with these parameters and integers, as far as this stage quantises it."""
        layers = {layer: integers[layer] for layer in unit.layers}
        sites = [site.name for site in self.executor.sites(unit)]
        return UnitState(params, layers, sites=sites, device=self.executor.device, activations=self.stage.activations)

    def names(self, unit: Unit) -> tuple[list[fx.Node], list[str]] | None:
        """Layers and sites of a unit that are learned; None where there are none."""
        tied = {name for group in self.plan.groups for name in group.members}
        layers = [layer for layer in unit.layers if self.widths[layer].bits <= WIDEST_LEARNED and self.stage.rounding_lr > 0]
        learns_steps = self.stage.activations and self.stage.step_lr > 0
        found = [site.name for site in self.executor.sites(unit) if site.bits <= WIDEST_LEARNED and site.name not in tied]
        sites = found if learns_steps else []
        return (layers, sites) if layers or sites else None

    def learn(
        self,
        unit: Unit,
        data: UnitData,
        params: Mapping[str, QuantParams],
        integers: Mapping[fx.Node, LayerIntegers],
        *,
        behind: Behind | None,
        seed: int,
        advance: Callable[[int, float], None],
    ) -> FinishedUnit:
        """Learn one unit.

        Args:
            unit: which.
            data: its inputs and targets.
            params: of every site, as chosen so far.
            integers: of every layer, as chosen so far.
            behind: the float model behind the unit, where the stage asks for it.
            seed: of batches and masks.
            advance: is told the number of steps just done, and the latest loss.
        """
        layers, sites = self.names(unit) or ([], [])
        state = self.state(unit, params, integers)
        decisions: list[Decision] = []
        weights = self._weights(unit, data, behind, decisions, seed=seed)
        before = relative_error(self.executor, unit, data, state, batch=self.batch, weights=weights)
        starts = [self._start(layer, integers[layer], params) for layer in layers]
        rounding = Rounding(starts, method=self.preset.rounding, absolute=self.stage.absolute) if starts else None
        try:
            optimise(
                self.executor,
                unit,
                data,
                state,
                Learned(layers=layers, rounding=rounding, sites=sites),
                stage=self.stage,
                loss=UnitLoss(self.stage, weights=weights, behind=behind),
                batch=self.preset.batch,
                iters=self.iters,
                seed=seed,
                advance=advance,
            )
            steps = {name: _step(params[name], factor) for name, factor in state.factors.items()}
            learned = {} if rounding is None else self._finish(layers, rounding, params)
            decisions += _at_limit(unit, state, rounding)
            moved = {**params, **{name: self.with_step(params[name], name, step) for name, step in steps.items()}}
            shipped = self.state(unit, moved, {**integers, **learned})
            after = relative_error(self.executor, unit, data, shipped, batch=self.batch, weights=weights)
            why = f"the error of its output would be {after:.3g}, not {before:.3g}"
        except LossNotFiniteError as problem:
            steps, learned, after, why = {}, {}, float("nan"), str(problem)
        if not after <= before:
            what = "left rounded to nearest" if self.stage is self.preset.stages[0] else f"left as before the stage of {self.stage.name}"
            decisions.append(Decision(where=unit.name, what=what, why=why))
            steps, learned, after = {}, {}, before
        record = UnitRecord(
            name=unit.name if len(self.preset.stages) == 1 else f"{unit.name} ({self.stage.name})",
            layers=tuple(self.widths[layer].name for layer in learned),
            sites=tuple(steps),
            error_before=before,
            error_after=after,
        )
        return FinishedUnit(integers=learned, steps=steps, record=record, decisions=tuple(decisions))

    def with_step(self, params: QuantParams, name: str, step: float) -> QuantParams:
        """Parameters of a site with another step size; the code of an absorbed clamp's upper bound follows."""
        site = next(site for site in self.plan.sites if site.name == name)
        return finish_carrier(scale=step, zero_point=params.zero_point, bits=site.bits, storage=params.storage, bounds=site.bounds)

    def _weights(self, unit: Unit, data: UnitData, behind: Behind | None, decisions: list[Decision], *, seed: int) -> Tensor | None:
        """Of the output's elements; None where all count alike."""
        if self.stage.loss != "aph" or behind is None:
            return None
        signs = torch.Generator().manual_seed(seed) if self.stage.random_signs else None
        weights = perturbation_hessian(behind, data.target, temperature=self.stage.temperature, batch=self.batch, signs=signs)
        if not bool(torch.isfinite(weights).all()) or not bool(weights.any()):
            why = "what the float model behind it makes of a perturbation is zero everywhere or no number"
            decisions.append(Decision(where=unit.name, what="errors of its output weighted alike", why=why))
            return None
        return weights

    def _start(self, layer: fx.Node, integers: LayerIntegers, params: Mapping[str, QuantParams]) -> LayerStart:
        weight, bias = float_weights(self.executor.graph, layer)
        x_scale = read_params(self.plan, layer, params).scale
        # Room for a bias that grows to twice its size while the step of the input shrinks as far as it may.
        least = least_scales(None if bias is None else 2 * bias, len(integers.scales), x_scale=x_scale * LEAST_FACTOR)
        norm = np.sqrt(np.square(weight.reshape(len(weight), -1).astype(np.float64)).sum(1))
        device = self.executor.device
        return LayerStart(
            weight=torch.as_tensor(weight, device=device),
            bias=None if bias is None else torch.as_tensor(bias, device=device),
            scales=torch.as_tensor(integers.scales, device=device),
            least=torch.as_tensor(least, device=device),
            bias_unit=torch.as_tensor((norm * x_scale).astype(np.float32), device=device),
            bits=self.widths[layer].bits,
        )

    def _finish(self, layers: Sequence[fx.Node], rounding: Rounding, params: Mapping[str, QuantParams]) -> dict[fx.Node, LayerIntegers]:
        """The learned weights as stored integers."""
        made: dict[fx.Node, LayerIntegers] = {}
        with torch.no_grad():
            for number, (layer, codes) in enumerate(zip(layers, rounding.split_codes(hard=True), strict=True)):
                bias = rounding.bias(number)
                bias_values = None if bias is None else bias.cpu().numpy().astype(np.float32)
                stored = codes.cpu().numpy().astype(np.int8)
                x_scale = read_params(self.plan, layer, params).scale
                scales = scales_of_dead(bias_values, rounding.scales(number).cpu().numpy(), stored, x_scale=x_scale)
                made[layer] = LayerIntegers(scales=scales, codes=stored, bias=bias_values)
        return made


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
