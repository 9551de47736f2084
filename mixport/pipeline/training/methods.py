"""Methods of training run on a job: what each leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mixport import lower as lowering
from mixport.model.float_model import FloatModel
from mixport.model.load_state import load_into
from mixport.pipeline.stages import StageContext
from mixport.pipeline.training.train_plan import TrainPlan
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.trained import EpochRecord, SitesFile
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError, UnsupportedModelError
from mixport.train.data.batches import BatchSource
from mixport.train.data.training_images import TrainingImages
from mixport.train.folder import integers_of, sites_of
from mixport.train.loop.checkpoints import EpochCheckpoints
from mixport.train.loop.loop import Phase, Trained, train
from mixport.train.loop.losses import Objective
from mixport.train.nipq.method import Nipq
from mixport.train.nipq.trainees import FinetuneTrainee
from mixport.train.robust.trainee import RobustTrainee

_STATISTICS_IMAGES = 1024
"""Training images that scales are calibrated and units reconstructed on."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: what every method needs.

    Attributes:
        plan: settings.
        model: float model.
        data: training images.
        source: their batches.
        objective: loss.
        checkpoints: of epochs and units.
        context: store, bars and log.
        workdir: existing folder that goes away.
    """

    plan: TrainPlan
    model: FloatModel
    data: TrainingImages
    source: BatchSource
    objective: Objective
    checkpoints: EpochCheckpoints
    context: StageContext
    workdir: Path


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a training leaves.

    Attributes:
        weights: float tensors by name: the state dict of the model, or of NIPQ layers of the prepared graph.
        sites: widths and intervals, None where none were chosen.
        integers: codes, scales and biases, None likewise.
        scheme: that the graph was prepared for, None likewise.
        curve: one entry an epoch.
        decisions: what was held, declined or changed.
    """

    weights: Mapping[str, Tensor]
    sites: SitesFile | None
    integers: Mapping[str, Tensor] | None
    scheme: dict[str, Any] | None
    curve: tuple[EpochRecord, ...]
    decisions: tuple[Decision, ...]


def run_nipq(job: Job) -> Finished:
    """Widths, intervals and integers. Raises as `Nipq` and the loop."""
    plan = job.plan
    if plan.nipq is None or plan.target is None:
        raise InvariantError("no settings of NIPQ")
    method = Nipq(
        model=job.model,
        target=plan.target,
        calibration=_statistics(job),
        settings=plan.nipq,
        workdir=job.workdir,
        checkpoints=job.checkpoints,
        progress=job.context.progress,
        batch=job.source.batch,
        steps=job.source.steps,
    )
    if plan.nipq.budget.size_bytes is not None:
        with job.context.log.stage("smallest file"):
            smallest = lowering.lower(method.smallest(), plan.target, workdir=job.workdir)
            method.fixed_bytes = method.room(smallest.model_path.stat().st_size)
    trained = _loop(job, method.phases())
    assignment = method.assignment(trained.trainee)
    if method.shipped is None or not isinstance(trained.trainee, FinetuneTrainee):
        raise InvariantError("NIPQ ended without a graph")
    return Finished(
        weights=trained.trainee.network.layers.give(),
        sites=sites_of(assignment, method.shipped, source=f"nipq {plan.nipq.budget.text}"),
        integers=integers_of(assignment, method.shipped),
        scheme=asdict(method.scheme()),
        curve=trained.curve,
        decisions=tuple(method.decisions),
    )


def run_robust(job: Job) -> Finished:
    """Plain float weights that take the place of the model's. Raises UnsupportedModelError for a program."""
    plan, module = job.plan, job.model.module
    if plan.robust is None:
        raise InvariantError("no settings of a robust training")
    if job.model.source.endswith(".pt2"):
        raise UnsupportedModelError(
            f"{job.model.source}: an exported program has no training mode",
            hint="name the factory of its nn.Module, package.module:factory",
        )
    settings = plan.robust

    def make(_: object) -> RobustTrainee:
        return RobustTrainee(module, settings, device=job.source.device, amp=plan.loop.amp)

    trained = _loop(job, [Phase(name=plan.method, epochs=plan.epochs, make=make)])
    if not isinstance(trained.trainee, RobustTrainee):
        raise InvariantError("not a robust training")
    state = trained.trainee.result().state_dict()
    load_into(module, dict(state), source="the training")  # what was written can be read back
    bounds = trained.trainee.bounds.values()
    decisions: list[Decision] = []
    if bounds:
        what = f"weights of {len(bounds)} layers bounded to {min(bounds):.3g} ... {max(bounds):.3g}"
        why = f"satnl, {settings.bound:g} standard deviations of each layer's first weights"
        decisions.append(Decision(where="weights", what=what, why=why))
    return Finished(
        weights=state,
        sites=None,
        integers=None,
        scheme=None,
        curve=trained.curve,
        decisions=tuple(decisions),
    )


def _loop(job: Job, phases: list[Phase]) -> Trained:
    return train(
        phases,
        job.source,
        job.objective,
        job.plan.loop,
        checkpoints=job.checkpoints,
        progress=job.context.progress,
    )


def _statistics(job: Job) -> CalibrationSet:
    """Training images at even distances, as a calibration set."""
    order = job.data.order
    count = min(len(order), _STATISTICS_IMAGES)
    places = order[np.linspace(0, len(order) - 1, count).astype(np.int64)]
    path = job.workdir / "statistics.npy"
    np.save(path, np.asarray(job.data.images[places]))
    return CalibrationSet(
        images_path=path,
        count=count,
        method=job.plan.calibration.method,
        recipe_key=job.data.sha256,
        content_sha256=job.data.sha256,
    )
