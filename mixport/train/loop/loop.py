"""Phases of epochs: the loop over batches, watched, and checkpointed after every epoch."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mixport.quantize.learn.loop.float32 import in_float32
from mixport.records.choices.trained import EpochRecord
from mixport.records.errors import TrainingError
from mixport.records.progress import Progress
from mixport.train.data.batches import Batch, BatchSource
from mixport.train.loop.checkpoints import EpochCheckpoints, read_state, write_state
from mixport.train.loop.losses import Objective
from mixport.train.loop.settings import LoopSettings
from mixport.train.loop.sharpness import SharpnessAware
from mixport.train.loop.trainee import Trainee

_LAST_RATE, _FIRST_RATE = 1e-3, 0.1
"""Shares of the peak rate: at the end of a phase, and where the warm-up starts (NIPQ's released code)."""
_MOMENTUM = 0.9
_NOISE_SEED = 15_485_863
"""Keeps an epoch's noise apart from its batches."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of epochs with one network and one schedule.

    Attributes:
        name: for people.
        epochs: of the phase.
        make: the network, from that of the phase before; the first phase gets None.
        lr_factor: of the training's learning rate.
    """

    name: str
    epochs: int
    make: Callable[[Trainee | None], Trainee]
    lr_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The last phase's network with its final parameters, and the curve."""

    trainee: Trainee
    curve: tuple[EpochRecord, ...]


def train(
    phases: Sequence[Phase],
    source: BatchSource,
    objective: Objective,
    settings: LoopSettings,
    *,
    checkpoints: EpochCheckpoints,
    progress: Progress,
) -> Trained:
    """Run all phases; epochs that are finished already are taken from their checkpoints.

    Args:
        phases: in order.
        source: of batches.
        objective: what becomes small.
        settings: of the loop.
        checkpoints: of epochs.
        progress: one bar over all steps.

    Raises:
        TrainingError: the loss is no finite number.
    """
    curve: list[EpochRecord] = []
    previous: Trainee | None = None
    first = 0
    total = sum(phase.epochs for phase in phases) * source.steps
    with in_float32(source.device), progress.track("train", total=total, unit="steps") as advance:
        for phase in phases:
            run = PhaseRun(phase, phase.make(previous), source, objective, settings, first=first)
            done = _resumed(run, checkpoints, curve)
            if done:
                advance(done * source.steps, f"{phase.name}, from the cache")
            for epoch in range(done, phase.epochs):
                curve.append(run.epoch(epoch, advance))
                with checkpoints.keep(f"epoch-{first + epoch}") as folder:
                    write_state(
                        folder,
                        module=run.trainee.module,
                        optimiser=run.optimiser,
                        average=run.average,
                        curve=curve,
                    )
                if epoch > 0:  # the last one of each phase stays: the next phase starts from it
                    checkpoints.forget(f"epoch-{first + epoch - 1}")
            run.finish()
            previous, first = run.trainee, first + phase.epochs
    if previous is None:
        raise ValueError("no phase")
    return Trained(trainee=previous, curve=tuple(curve))


def _resumed(run: PhaseRun, checkpoints: EpochCheckpoints, curve: list[EpochRecord]) -> int:
    """Epochs of the phase that are finished; their last state is put back."""
    for epoch in range(run.phase.epochs - 1, -1, -1):
        folder = checkpoints.find(f"epoch-{run.first + epoch}")
        if folder is not None:
            curve[:] = read_state(
                folder, module=run.trainee.module, optimiser=run.optimiser, average=run.average
            )
            return epoch + 1
    return 0


class PhaseRun:
    """One phase under way."""

    def __init__(
        self,
        phase: Phase,
        trainee: Trainee,
        source: BatchSource,
        objective: Objective,
        settings: LoopSettings,
        *,
        first: int,
    ) -> None:
        self.phase, self.trainee, self.first = phase, trainee, first
        self._source, self._objective, self._settings = source, objective, settings
        self.optimiser = _optimiser(trainee, settings, lr=settings.lr * phase.lr_factor)
        self._parameters = [one for group in self.optimiser.param_groups for one in group["params"]]
        self._peaks = [float(group["lr"]) for group in self.optimiser.param_groups]
        # Running statistics belong to the weights: they are averaged with them.
        buffers = [one for one in trainee.module.buffers() if one.is_floating_point()]
        self._averaged_values = [*self._parameters, *buffers]
        self.average = [one.detach().clone() for one in self._averaged_values] if settings.ema > 0 else []
        self._merge = get_ema_multi_avg_fn(settings.ema)
        self._sharpness = (
            None
            if settings.sharpness == "none"
            else SharpnessAware(self._parameters, rho=settings.rho, adaptive=settings.sharpness == "asam")
        )

    def epoch(self, number: int, advance: Callable[..., None]) -> EpochRecord:
        """Train one epoch of the phase, and look at the images that are held out."""
        settings, whole = self._settings, self.first + number
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + whole + _NOISE_SEED) % 2**63)
        self.trainee.start_epoch(generator)
        steps, losses = self._source.steps, 0.0
        for step, batch in enumerate(self._source.epoch(whole)):
            self._set_rates(number * steps + step)
            loss = float(self.step(batch))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} in step {step} of epoch {whole} ({self.phase.name}), allowed finite "
                    "numbers: training diverged",
                    hint=f"a smaller --lr than {settings.lr:g}",
                )
            losses += loss
            advance(1, f"{self.phase.name}, epoch {whole}, loss {losses / (step + 1):.3g}")
        with self._averaged():
            held_out = self._watch()
        return EpochRecord(
            phase=self.phase.name,
            epoch=whole,
            loss=losses / steps,
            held_out=held_out,
            figures=dict(self.trainee.report()),
        )

    def finish(self) -> None:
        """End of the phase: the average of the parameters takes their place, where there is one."""
        self._swap()
        self.average = []

    def step(self, batch: Batch) -> Tensor:
        """One step on one batch; gives the loss."""
        taught = self._objective.taught(batch.images)

        def closure() -> Tensor:
            self.optimiser.zero_grad(set_to_none=True)
            loss = self._objective(self.trainee.outputs(batch.images), batch.targets, taught)
            penalty = self.trainee.penalty()
            whole = loss if penalty is None else loss + penalty
            whole.backward()
            # What is shown is the loss of the data; a penalty that is no number must not hide behind it.
            return loss.detach() if bool(torch.isfinite(whole)) else whole.detach()

        loss = closure() if self._sharpness is None else self._sharpness(closure)
        self.optimiser.step()
        self.trainee.after_step()
        if self.average:
            with torch.no_grad():
                self._merge(self.average, [one.detach() for one in self._averaged_values], 1)
        return loss

    def _set_rates(self, step: int) -> None:
        """Linear warm-up, then half a cosine down to a thousandth, in each phase: its optimiser is new, and
        the first steps of AdamW, whose second moments are still empty, are as large as its rate.
        """
        total = self.phase.epochs * self._source.steps
        warm = min(round(self._settings.warmup_epochs * self._source.steps), total // 2)
        if step < warm:
            share = _FIRST_RATE + (1.0 - _FIRST_RATE) * step / warm
        else:
            falling = 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
            share = _LAST_RATE + (1.0 - _LAST_RATE) * falling
        for group, peak in zip(self.optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def _watch(self) -> float:
        """Accuracy on the held-out images, or agreement with the teacher."""
        right = count = 0
        with torch.no_grad():
            for batch in self._source.held_out():
                found = self.trainee.predict(batch.images).flatten(1).argmax(1)
                wanted = batch.targets
                if wanted is None:
                    taught = self._objective.taught(batch.images)
                    wanted = found if taught is None else taught.argmax(1)
                right += int((found == wanted.to(found.device)).sum())
                count += len(found)
        return right / count

    def _averaged(self) -> _Swapped:
        return _Swapped(self._swap)

    def _swap(self) -> None:
        with torch.no_grad():
            for parameter, average in zip(self._averaged_values, self.average, strict=bool(self.average)):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)


class _Swapped:
    """The averaged parameters in the place of the last ones, for a while."""

    def __init__(self, swap: Callable[[], None]) -> None:
        self._swap = swap

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def _optimiser(trainee: Trainee, settings: LoopSettings, *, lr: float) -> Optimizer:
    groups: list[dict[str, Any]] = []
    for rates in trainee.groups(weight_decay=settings.weight_decay):
        moved: list[nn.Parameter] = [one for one in rates.parameters if one.requires_grad and one.numel()]
        if moved:
            groups.append(
                {
                    "params": moved,
                    "lr": lr * rates.factor if rates.rate is None else rates.rate,
                    "weight_decay": rates.decay,
                }
            )
    if settings.optimiser == "adam":
        return AdamW(groups, fused=True)
    return SGD(groups, momentum=_MOMENTUM, nesterov=True)
