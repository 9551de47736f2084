"""From a float model to a training's folder: loads, makes images, runs the method. No arithmetic here."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixport.model.float_model import FloatModel, open_model
from mixport.model.output_classes import output_classes
from mixport.pipeline import stages
from mixport.pipeline.keys import model_key, training_key, unit_key
from mixport.pipeline.options.train_options import TrainOptions
from mixport.pipeline.stages import StageContext, StageLog
from mixport.pipeline.training.methods import Finished, Job, run_nipq, run_robust
from mixport.pipeline.training.train_plan import TrainPlan, resolve_training
from mixport.records.choices.trained import TrainingData, TrainingRecord
from mixport.records.errors import BadInputError
from mixport.records.fingerprint import sha256_arrays
from mixport.records.machine import describe_environment
from mixport.records.progress import Progress, SilentProgress
from mixport.release.training_plot import training_plot
from mixport.storage.images import read_labelled
from mixport.storage.store import Store
from mixport.train.data.batches import BatchSource
from mixport.train.data.training_images import TrainingImages, split
from mixport.train.folder import check_out, write_folder
from mixport.train.loop.losses import Objective

_KIND = "training"
"""Of the cache entries that hold the state after an epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Where a training's folder lies, and what stands in its record."""

    path: Path
    record: TrainingRecord


def train(
    model: str = "builtin:cifar10-resnet20",
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a model for low bits and write its folder, which `mixport.build(..., trained=FOLDER)` exports.

    Args:
        model: builtin:NAME, timm:ARCH or package.module:factory.
        progress: shows bars; silent where None.
        note: is told what happens.
        options: the options of `mixport train` under the same names, see
            `mixport.pipeline.options.train_options.TrainOptions`.

    Raises:
        MixportError: see the subclasses; nothing is written.
    """
    return run_training(TrainOptions.of({"model": model, **options}), progress=progress, note=note)


def run_training(
    options: TrainOptions,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    on_start: Callable[[str], None] | None = None,
) -> TrainingResult:
    """The same for options that are checked already.

    Args:
        options: of `mixport train`.
        progress: shows bars.
        note: is told what happens.
        on_start: is told what will be done, before any work on it.
    """
    plan = resolve_training(options)
    log = StageLog(note or (lambda _: None))
    context = StageContext(store=Store(plan.cache), progress=progress or SilentProgress(), log=log)
    model = stages.load(context, plan.model)
    out = plan.folder(model.name)
    check_out(out)
    classes = output_classes(model)
    teacher = model if plan.teacher_is_model else None
    if plan.teacher is not None:
        teacher = open_model(plan.teacher)
    _check_teacher(teacher, model, classes=classes)
    with log.stage("images"):
        data, description = _images(context, plan, model, classes=classes)
    if on_start is not None:
        on_start(_announcement(plan, model, description, teacher, out))
    key = training_key(
        model=model_key(model),
        teacher=None if teacher is None else model_key(teacher),
        data=data.sha256,
        target=None if plan.target is None else plan.target.sha256,
        settings=_deciding(plan),
    )
    device = torch.device(plan.loop.device)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            plan=plan,
            model=model,
            data=data,
            source=BatchSource(
                data=data,
                preprocessing=model.preprocessing,
                batch=min(plan.batch, len(data.order)),
                augmentation=plan.augmentation,
                mix=plan.mix,
                classes=classes,
                seed=plan.loop.seed,
                device=device,
            ),
            objective=Objective(
                teacher=None if teacher is None else copy.deepcopy(teacher.module).to(device),
                teacher_weight=plan.teacher_weight,
                temperature=plan.temperature,
                label_weight=plan.label_weight,
                amp=plan.loop.amp,
            ),
            checkpoints=_StoredEpochs(store=context.store, training=key),
            context=context,
            workdir=Path(scratch),
        )
        with log.stage("train"):
            finished = run_nipq(job) if plan.nipq is not None else run_robust(job)
    record = _record(plan, model, teacher, description, finished)
    with log.stage("write"):
        written = write_folder(
            out,
            record,
            weights=finished.weights,
            sites=finished.sites,
            integers=finished.integers,
            plot=training_plot(finished.curve, finished.sites, labels=description.labels),
        )
    return TrainingResult(path=out, record=written)


@dataclass(frozen=True, kw_only=True)
class _StoredEpochs:
    """Finished epochs and units of one training as cache entries: `UnitCheckpoints`."""

    store: Store
    training: str

    def find(self, place: int | str) -> Path | None:
        return self.store.get(_KIND, unit_key(quantized=self.training, place=place))

    def keep(self, place: int | str) -> AbstractContextManager[Path]:
        return self.store.create(_KIND, unit_key(quantized=self.training, place=place))

    def forget(self, place: int | str) -> None:
        key = unit_key(quantized=self.training, place=place)
        if self.store.get(_KIND, key) is not None:
            self.store.remove(_KIND, key)


def _images(
    context: StageContext, plan: TrainPlan, model: FloatModel, *, classes: int
) -> tuple[TrainingImages, TrainingData]:
    if plan.labelled is not None:
        found = read_labelled(
            plan.labelled,
            preprocessing=model.preprocessing,
            class_names=model.class_names,
            class_ids=model.class_ids,
        )
        images, labels, source, method = found.images, found.labels, found.source, "labelled"
        sha256 = sha256_arrays({"images": images, "labels": labels})
    else:
        made = stages.calibrate(context, model, plan.recipe(model))
        images, labels, source, method = made.open_images(), None, plan.calibration.method, made.method
        sha256 = made.content_sha256
    data = split(images, labels, source=source, sha256=sha256, seed=plan.loop.seed, classes=classes)
    return data, TrainingData(
        method=method,
        source=source,
        sha256=sha256,
        images=len(data.order),
        held_out=len(data.held_out),
        labels=labels is not None,
    )


def _check_teacher(teacher: FloatModel | None, model: FloatModel, *, classes: int) -> None:
    if teacher is None or teacher is model:
        return
    if output_classes(teacher) != classes or teacher.preprocessing != model.preprocessing:
        raise BadInputError(
            f"--teacher {teacher.source} has {output_classes(teacher)} outputs and preprocessing "
            f"{teacher.preprocessing}, allowed those of {model.source}: {classes} and {model.preprocessing}",
            hint="a teacher of the same classes and the same preprocessing, or --teacher self",
        )


def _deciding(plan: TrainPlan) -> Mapping[str, Any]:
    """Every setting that decides the result: no folders, no spelling."""
    names = (
        "method",
        "loop",
        "nipq",
        "robust",
        "batch",
        "epochs",
        "augmentation",
        "mix",
        "teacher_weight",
        "temperature",
        "label_weight",
    )
    return {name: _plain(getattr(plan, name)) for name in names}


def _plain(value: Any) -> Any:
    return (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )


def _announcement(
    plan: TrainPlan, model: FloatModel, data: TrainingData, teacher: FloatModel | None, out: Path
) -> str:
    taught = "none" if teacher is None else "the float model" if teacher is model else teacher.source
    lines = [
        f"training   {model.name} by {plan.method}, {plan.epochs} epochs of {data.images} images "
        f"({data.method}: {data.source}), {data.held_out} held out",
        f"teacher    {taught}",
    ]
    if plan.nipq is not None and plan.target is not None:
        lines.append(f"budget     {plan.nipq.budget.text} for {plan.target.name}")
    lines.append(f"out        {out}")
    return "\n".join(lines)


def _record(
    plan: TrainPlan,
    model: FloatModel,
    teacher: FloatModel | None,
    data: TrainingData,
    finished: Finished,
) -> TrainingRecord:
    return TrainingRecord(
        method=plan.method,
        model={"name": model.name, "source": model.source, "sha256": model.sha256},
        model_options=plan.model_options,
        teacher=None if teacher is None else teacher.source,
        data=data,
        scheme=finished.scheme,
        target=None if plan.target is None else {"name": plan.target.name, "sha256": plan.target.sha256},
        budget=None if plan.nipq is None else plan.nipq.budget.text,
        settings=dict(_deciding(plan)),
        curve=finished.curve,
        decisions=tuple({"where": one.where, "what": one.what, "why": one.why} for one in finished.decisions),
        environment=describe_environment(),
        command=plan.command,
        files={},
    )
