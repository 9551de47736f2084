"""The whole way from a float model to a release bundle: calls the stages in order. No arithmetic here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixport.calibration.details import set_details
from mixport.calibration.preview import preview
from mixport.model.float_model import FloatModel
from mixport.model.zero_weights import zero_layers
from mixport.pipeline import stages
from mixport.pipeline.announcement import Announcement, announce
from mixport.pipeline.build_plan import BuildPlan, resolve
from mixport.pipeline.build_target import BuildInputs, BuildOutcome, about_images, build_target, tell
from mixport.pipeline.keys import model_key
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.stages import StageContext, StageLog
from mixport.pipeline.warnings import (
    zero_weights,
)
from mixport.records.calibration_set import CalibrationSet
from mixport.records.errors import BadOptionError, ValidationFailedError
from mixport.records.progress import Progress, SilentProgress
from mixport.release.bundle import ReleaseBundle, check_replaceable, read_bundle
from mixport.storage.image_files import SUFFIXES, skipped_files
from mixport.storage.images import LabelledImages, read_labelled
from mixport.storage.store import Store


def build(
    model: str = "builtin:cifar10-resnet20",
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **options: Any,
) -> ReleaseBundle:
    """Quantise a model for one target, lower it, validate it, and write a release bundle.

    Args:
        model: builtin:NAME, timm:ARCH, package.module:factory or FILE.pt2.
        progress: shows bars; silent where None.
        note: is told when a stage starts and when it is done.
        options: the options of `mixport build` under the same names, see
            `mixport.pipeline.options.build_options.BuildOptions`.

    Returns:
        the bundle, whose validation and gates passed.

    Raises:
        ValidationFailedError: codes differ or a gate is not met; the bundle is written all the same, for
            diagnosis.
        MixportError: see the subclasses; nothing is written.
    """
    checked = BuildOptions.of({"model": model, **options})
    if len(checked.target) != 1:
        raise BadOptionError(
            f"build() makes one bundle, got {len(checked.target)} targets",
            hint="mixport.pipeline.build_all(options)",
        )
    (outcome,) = build_all(checked, progress=progress, note=note)
    if outcome.failures:
        raise ValidationFailedError(
            "; ".join(outcome.failures), hint=f"mixport inspect {outcome.bundle.path}"
        )
    return outcome.bundle


def build_all(
    options: BuildOptions,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    on_start: Callable[[Announcement], None] | None = None,
) -> tuple[BuildOutcome, ...]:
    """Build one bundle per target, see `BuildPlan.folders`.

    Args:
        options: of `mixport build`.
        progress: shows bars; silent where None.
        note: is told when a stage starts and when it is done.
        on_start: is told what will be done, when the model is loaded and before any work on it.

    Raises:
        MixportError: see the subclasses; bundles of targets before the one that failed stay.
    """
    plan = resolve(options)
    context = _open_context(plan, progress, note)
    model = stages.load(context, plan.model)
    if plan.trained is not None:
        plan.trained.check_model(model)
    recipe = plan.recipe(model)
    folders = plan.folders(model.name)
    for folder in folders:
        check_replaceable(folder)
        _say_what_is_replaced(context, folder, command=plan.command)
    labelled = None
    if plan.labelled is not None:
        labelled = read_labelled(
            plan.labelled,
            preprocessing=model.preprocessing,
            class_names=model.class_names,
            class_ids=model.class_ids,
        )
        _say_what_is_skipped(context, plan.labelled)
    if plan.calibration_folder is not None:
        _say_what_is_skipped(context, plan.calibration_folder)
    if on_start is not None:
        on_start(
            announce(
                plan,
                model=model,
                recipe=recipe,
                preview=preview(recipe, store=context.store),
                labelled=len(labelled.images) if labelled is not None else None,
                folders=folders,
            )
        )
    inputs = _prepare(context, plan, model, labelled, stages.calibrate(context, model, recipe))
    return tuple(
        build_target(context, plan, inputs, target, out=folder)
        for target, folder in zip(plan.targets, folders, strict=True)
    )


def calibrate_only(
    options: BuildOptions, *, progress: Progress | None = None, note: Callable[[str], None] | None = None
) -> CalibrationSet:
    """The calibration set that a build with these options uses, made where it is not in the cache yet."""
    plan = resolve(options)
    context = _open_context(plan, progress, note)
    model = stages.load(context, plan.model)
    made = stages.calibrate(context, model, plan.recipe(model))
    tell(context, about_images(made))
    return made


def _open_context(
    plan: BuildPlan, progress: Progress | None, note: Callable[[str], None] | None
) -> StageContext:
    log = StageLog(note or (lambda _: None))
    return StageContext(store=Store(plan.cache), progress=progress or SilentProgress(), log=log)


def _say_what_is_replaced(context: StageContext, folder: Path, *, command: str) -> None:
    """A bundle of the same command is made anew; one of another command would be lost without a word."""
    if not (folder.is_dir() and any(folder.iterdir())):
        return
    former = read_bundle(folder).manifest.reproduce
    if former != command:
        context.log.note(
            f"{folder} holds the bundle of another build, which this one replaces: {former}; hint: "
            "--out DIR keeps both"
        )


def _say_what_is_skipped(context: StageContext, folder: Path) -> None:
    skipped = skipped_files(folder) if folder.is_dir() else {}
    if skipped:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in skipped.items())
        context.log.note(
            f"{folder}: left out {sum(skipped.values())} files that are no "
            f"{', '.join(sorted(SUFFIXES))}: {kinds}"
        )


def _prepare(
    context: StageContext,
    plan: BuildPlan,
    model: FloatModel,
    labelled: LabelledImages | None,
    calibration: CalibrationSet,
) -> BuildInputs:
    count = plan.validation_count(model.preprocessing.size)
    source = labelled.images if labelled is not None else calibration.open_images()
    warnings = (*zero_weights(zero_layers(model)), *about_images(calibration))
    tell(context, warnings)
    return BuildInputs(
        model=model,
        model_key=model_key(model),
        calibration=calibration,
        drawing=set_details(context.store, calibration.recipe_key),
        labelled=labelled,
        images=np.ascontiguousarray(source[:count]),
        warnings=warnings,
    )
