"""The loop: learn rounding, scales and step sizes of one unit until its output is closest to the float
one.
"""

# torch leaves some signatures of tensors and optimisers without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import shape_of, tensor_arg
from mixport.quantize.gradients import backward
from mixport.quantize.learn.loop.activation_store import Activations, slices
from mixport.quantize.learn.loop.watch import Watch
from mixport.quantize.learn.reconstruction.losses import UnitLoss
from mixport.quantize.learn.reconstruction.rounding import Rounding, beta_at
from mixport.quantize.learn.reconstruction.state import UnitState
from mixport.quantize.learn.reconstruction.steps import MaskPool
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.units import Unit
from mixport.quantize.sites.planner import SitePlan
from mixport.records.choices.reconstruction_preset import Stage

_LARGEST_TENSOR = 1 << 24
"""Elements of the largest tensor with codes in one step: 64 MB each of its copies."""
_SMALLEST_BATCH = 4
_POWER_IMAGES = 64
"""Enough to know the size of a unit's output."""


@dataclass(frozen=True, kw_only=True)
class UnitData:
    """What a unit reads and should give, for every calibration image.

    Attributes:
        float_input: of the float model.
        quantised_input: behind the quantised units before this one, before its own quantiser.
        target: output of the float model.
    """

    float_input: Activations
    quantised_input: Activations
    target: Activations


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What is to be learned in a unit.

    Attributes:
        layers: whose rounding is learned, in the order of `rounding`.
        rounding: of these layers; None where every weight is fixed.
        sites: whose step sizes are learned.
    """

    layers: Sequence[fx.Node]
    rounding: Rounding | None
    sites: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """How much one step of a unit takes.

    Attributes:
        images: at once.
        largest: elements of the largest tensor with codes, for one image.
    """

    images: int
    largest: int


def step_size(executor: Executor, unit: Unit, data: UnitData, *, wanted: int) -> StepSize:
    """As many images as wanted; fewer where the unit's tensors are large, or there are fewer."""
    largest = largest_coded(executor, unit, data.quantised_input.at(slice(0, 1)))
    return StepSize(
        images=batch_for(largest, wanted=wanted, images=len(data.target), elements=_LARGEST_TENSOR),
        largest=largest,
    )


def relative_error(
    executor: Executor,
    unit: Unit,
    data: UnitData,
    state: UnitState,
    *,
    batch: int,
    weights: Tensor | None = None,
) -> float:
    """Squared error of the unit's output over all images, relative to the output's own square, or to 1 where
    that is 0.

    Both are weighted where there are `weights`, of one image's output. NaN or infinite where the output is.
    Summed in float64: squares of float32 values may leave float32.
    """
    wrong = total = 0.0
    with torch.no_grad():
        for part in slices(len(data.target), batch):
            target = data.target.at(part)
            got = executor.run(
                unit, data.quantised_input.at(part), images=part.stop - part.start, quantised=state
            )
            wrong += float(_squares(got - target, weights).sum())
            total += float(_squares(target, weights).sum())
    return wrong / total if total > 0 else wrong


def values_a_weight(unit: Unit, target: Activations, *, channels: int) -> float:
    """Values of an output channel over all images, for each weight that it sums: of the layer that sums most.

    Args:
        unit: which.
        target: its outputs.
        channels: of them.
    """
    places = len(target) * target.at(slice(0, 1)).numel() / channels
    summed = [shape_of(tensor_arg(layer, 1))[1:] for layer in unit.layers]
    return places / max((math.prod(shape) for shape in summed), default=1)


def _squares(values: Tensor, weights: Tensor | None) -> Tensor:
    """In float64."""
    squares = values.double().square()
    return squares if weights is None else squares.reshape(-1, *weights.shape) * weights


def optimise(
    executor: Executor,
    unit: Unit,
    data: UnitData,
    state: UnitState,
    learned: Learned,
    *,
    stage: Stage,
    loss: UnitLoss,
    size: StepSize,
    iters: int,
    seed: int,
    advance: Callable[[int, float], None],
) -> None:
    """Learn in place: the rounding, and the factors in `state`.

    Args:
        executor: of the graph.
        unit: to learn.
        data: its inputs and targets.
        state: its quantisers.
        learned: what may move.
        stage: how.
        loss: what becomes small.
        size: of a step.
        iters: steps.
        seed: of batches and masks.
        advance: is told the number of steps just done, and the latest loss.

    Raises:
        NotLearnedError: the loss or what was learned is no finite number, or no gradient reaches what is
            learned.
    """
    count, device, batch = len(data.target), executor.device, size.images
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(0, count, (iters, batch), generator=generator).to(device)
    largest = batch * max(size.largest, data.quantised_input.at(slice(0, 1)).numel())
    inner = _masks(stage.inner_drop, largest, generator=generator, device=device)
    outer = (
        inner
        if stage.input_drop == stage.inner_drop
        else _masks(stage.input_drop, largest, generator=generator, device=device)
    )
    groups = _parameters(state, learned, stage, device=device)
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, fused=True)
    first = [float(group["lr"]) for group in optimizer.param_groups]
    state.drop = inner
    watch = Watch(iters, advance)
    power = loss.channels(data.target.at(slice(0, 1))) * float(
        data.target.at(slice(0, min(count, _POWER_IMAGES))).square().mean()
    )
    for step in range(iters):
        falling = 0.5 * (1.0 + math.cos(math.pi * step / iters))
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * falling if group["falls"] else lr
        x = data.quantised_input.at(order[step])
        if outer is not None:
            x = torch.lerp(data.float_input.at(order[step]), x, outer.like(x))
        if learned.rounding is not None:
            state.learned = dict(zip(learned.layers, learned.rounding.weights(), strict=True))
        got = executor.run(unit, x, images=batch, quantised=state)
        wrong = loss(got, data.target.at(order[step]), order[step])
        optimizer.zero_grad(set_to_none=True)
        backward(wrong, _regulariser(learned.rounding, step, iters, stage, power=power))
        optimizer.step()
        if learned.rounding is not None:
            learned.rounding.hold()
        watch.see(step, wrong)
    watch.end(parameter for group in groups for parameter in group["params"])
    state.freeze()


def _parameters(
    state: UnitState, learned: Learned, stage: Stage, *, device: torch.device
) -> list[dict[str, Any]]:
    """Adam's parameter groups; what is not learned asks for no gradient, and the state's steps become
    learnable.
    """
    groups: list[dict[str, Any]] = []
    rounding = learned.rounding
    if rounding is not None:
        groups.append(
            {"params": [rounding.codes_at], "lr": stage.rounding_lr, "falls": rounding.method == "free"}
        )
        for parameters, lr in ((rounding.scales_at, stage.scale_lr), (rounding.bias_moves, stage.bias_lr)):
            parameters.requires_grad_(lr > 0)
            if lr > 0:
                groups.append({"params": list(parameters), "lr": lr, "falls": True})
    if stage.step_lr > 0 and learned.sites:
        steps = state.learn_steps(learned.sites, device=device, absolute=stage.absolute)
        groups.append({"params": steps, "lr": stage.step_lr, "falls": True})
    return groups


def _regulariser(
    rounding: Rounding | None, step: int, iters: int, stage: Stage, *, power: float
) -> Tensor | float:
    if rounding is None:
        return 0.0
    if rounding.method == "free":
        return stage.damping * power * (step / iters) * rounding.unsettled() if stage.damping > 0 else 0.0
    beta = beta_at(step, iters, warmup=stage.warmup)
    return 0.0 if beta is None else stage.rounding_weight * rounding.undecided(beta)


def _masks(drop: float, largest: int, *, generator: torch.Generator, device: torch.device) -> MaskPool | None:
    return MaskPool(1.0 - drop, largest=largest, generator=generator, device=device) if drop > 0 else None


def batch_for(size: int, *, wanted: int, images: int, elements: int) -> int:
    """Images a step: as many as wanted, fewer where `size` elements an image would be more than `elements`
    together, at least 4.
    """
    return min(images, max(min(wanted, elements // max(size, 1)), min(wanted, _SMALLEST_BATCH)))


def largest_coded(executor: Executor, unit: Unit, x: Tensor) -> int:
    """Elements of the unit's largest tensor with codes, for one image: run on its values `x`, and looked
    at.
    """
    sizes = _Sizes()
    with torch.no_grad():
        executor.run(unit, x, images=1, quantised=sizes)
    return sizes.largest


class _Sizes:
    """Looks at the tensors with codes, and changes nothing; an `execute.Quantised`."""

    def __init__(self) -> None:
        self.largest = 1

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        self.largest = max(self.largest, value.numel())
        return value

    def weights(self, layer: fx.Node) -> None:
        return None
