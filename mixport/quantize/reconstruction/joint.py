"""The last stage: all units learned together, so that later ones make up for what earlier ones could not keep.

Units by themselves minimise the error of their own output; the model's output is what counts. From where the units ended, a short run
over the whole model lets the loss at the output reach every weight, while the features of each unit keep it from fitting the output
of the calibration images alone.
"""

# torch leaves some signatures of tensors and optimisers without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixport.quantize.reconstruction.caches import Activations, slices
from mixport.quantize.reconstruction.execute import Executor
from mixport.quantize.reconstruction.optimise import Learned, NotLearnedError, backward, batch_for, check_learned, coded_sizes, parameters
from mixport.quantize.reconstruction.state import UnitState
from mixport.quantize.reconstruction.units import Unit
from mixport.reconstruction_preset import Preset

_MOST_ELEMENTS = 1 << 26
"""Elements of all tensors with codes in one step; autograd keeps about four copies of each."""


@dataclass(frozen=True, kw_only=True)
class JointUnit:
    """One unit in the joint stage: its quantisers, and what of it is learned (nothing, for units of 8 bits)."""

    unit: Unit
    state: UnitState
    learned: Learned


def learn_jointly(
    executor: Executor,
    units: Sequence[JointUnit],
    images: Activations,
    *,
    preset: Preset,
    steps: int,
    seed: int,
    advance: Callable[[int, float], None],
) -> None:
    """Learn all units in place.

    Args:
        executor: of the graph.
        units: the whole model, in graph order.
        images: preprocessed calibration images.
        preset: rates are its `joint_lr` times those of the units' own learning.
        steps: of the optimiser.
        seed: of batches.
        advance: is told the number of steps just done, and the latest loss.

    Raises:
        NotLearnedError: the loss is no number.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = batch_for(_size(executor, units, images), wanted=preset.joint_batch, images=len(images), elements=_MOST_ELEMENTS)
    order = torch.randint(0, len(images), (steps, batch), generator=generator).to(executor.device)
    groups = [group for one in units for group in parameters(one.state, one.learned, preset, device=executor.device)]
    optimizer = torch.optim.Adam(groups, fused=True)
    first = [float(group["lr"]) * preset.joint_lr for group in optimizer.param_groups]
    pending = 0
    for step in range(steps):
        falling = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * falling
        loss = _loss(executor, units, images.at(order[step]), images=batch, preset=preset)
        optimizer.zero_grad(set_to_none=True)
        backward(loss)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotLearnedError(f"joint loss {value} at step {step + 1}")
        pending += 1
        if pending == 10 or step + 1 == steps:
            advance(pending, value)
            pending = 0
    check_learned(groups, steps=steps)
    for one in units:
        one.state.freeze()


def _size(executor: Executor, units: Sequence[JointUnit], images: Activations) -> int:
    """Elements of all tensors with codes, for one image."""
    x, total = images.at(slice(0, 1)), 0
    for one in units:
        total += coded_sizes(executor, one.unit, x).total
        with torch.no_grad():
            x = executor.run(one.unit, x, images=1)
    return total


def mean_loss(executor: Executor, units: Sequence[JointUnit], images: Activations, *, preset: Preset, batch: int) -> float:
    """The loss over all images, as the units stand."""
    total = 0.0
    with torch.no_grad():
        for part in slices(len(images), batch):
            count = part.stop - part.start
            total += count * float(_loss(executor, units, images.at(part), images=count, preset=preset))
    return total / len(images)


def _loss(executor: Executor, units: Sequence[JointUnit], x: Tensor, *, images: int, preset: Preset) -> Tensor:
    """Relative error of the features behind each learned unit, and the distance of the outputs."""
    loss = torch.zeros((), device=executor.device)
    expected = got = x
    for one in units:
        with torch.no_grad():
            expected = executor.run(one.unit, expected, images=images)
        if one.learned.rounding is not None and torch.is_grad_enabled():
            one.state.learned = dict(zip(one.learned.layers, one.learned.rounding.weights(), strict=True))
        got = executor.run(one.unit, got, images=images, quantised=one.state)
        if one is not units[-1]:
            loss = loss + preset.joint_features * _relative(got, expected)
    return loss + (_divergence(got, expected, temperature=preset.joint_temperature) if got.dim() == 2 else _relative(got, expected))


def _relative(got: Tensor, expected: Tensor) -> Tensor:
    return (got - expected).square().mean() / expected.square().mean().clamp_min(1e-12)


def _divergence(got: Tensor, expected: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the class probabilities at a temperature, times its square (arXiv 1503.02531)."""
    return torch.nn.functional.kl_div(
        torch.log_softmax(got / temperature, 1), torch.log_softmax(expected / temperature, 1), log_target=True, reduction="batchmean"
    ) * (temperature * temperature)
