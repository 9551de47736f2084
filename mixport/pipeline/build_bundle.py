"""The whole way from a float model to a release bundle: calls the stages in order. No arithmetic here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mixport import calibration as calibrating
from mixport.model.float_model import FloatModel
from mixport.model.zero_weights import zero_layers
from mixport.pipeline import stages
from mixport.pipeline.announcement import BuildPlan, describe_plan
from mixport.pipeline.keys import model_key
from mixport.pipeline.latency import BuildLatency, build_latency
from mixport.pipeline.manifest_entries import build_manifest
from mixport.pipeline.options.build_options import BuildOptions, command_line
from mixport.pipeline.portable_cost import portable_cost
from mixport.pipeline.stages import StageLog, Workshop
from mixport.pipeline.warnings import (
    slower_than_float,
    telling_outputs,
    unmeasured_versions,
    weak_output,
    zero_weights,
)
from mixport.quantize.emit.simulate import open_simulation
from mixport.records.artifacts import BuildWarning, CalibrationSet, LoweredGraph, ValidationReport
from mixport.records.environment import describe_environment
from mixport.records.errors import BadOptionError, MixportError, StoreError, ValidationFailedError
from mixport.records.progress import Progress, SilentProgress
from mixport.records.runtime import Runtime
from mixport.records.targets import Target, load_target
from mixport.release import evaluate
from mixport.release.bundle import ReleaseBundle, check_replaceable, golden_count, read_bundle, release
from mixport.release.manifest import ModelEntry
from mixport.release.report import StripImage, render, strip_images
from mixport.storage.image_files import SUFFIXES, skipped_files
from mixport.storage.images import LabelledImages, normalise, read_labelled
from mixport.storage.store import Store
from mixport.validate.conformance.evidence import with_evidence
from mixport.validate.conformance.used_forms import used_forms
from mixport.validate.proof.prove import prove
from mixport.validate.run.golden import golden
from mixport.validate.run.predict import predict
from mixport.validate.runtimes import open_runtimes
from mixport.validate.validate import validate


@dataclass(frozen=True, kw_only=True)
class BuildOutcome:
    """What one target's build gave.

    Attributes:
        bundle: where it lies, and its manifest.
        failures: why it must not ship, one sentence each; empty where validation and every gate passed.
    """

    bundle: ReleaseBundle
    failures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What does not depend on the target: the float model and the images."""

    model: FloatModel
    model_key: str
    calibration: CalibrationSet
    drawing: calibrating.SetDetails
    labelled: LabelledImages | None
    images: NDArray[np.uint8]
    warnings: tuple[BuildWarning, ...]


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
    on_plan: Callable[[BuildPlan], None] | None = None,
) -> tuple[BuildOutcome, ...]:
    """Build one bundle per target, see `bundle_folders`.

    Args:
        options: of `mixport build`.
        progress: shows bars; silent where None.
        note: is told when a stage starts and when it is done.
        on_plan: is told what will be done, when the model is loaded and before any work on it.

    Raises:
        MixportError: see the subclasses; bundles of targets before the one that failed stay.
    """
    shop = _open_workshop(options, progress, note)
    targets = [
        load_target(name) if options.portable else load_target(name).without_portable_forms()
        for name in options.target
    ]
    scheme = options.parse_scheme()
    for target in targets:
        target.check_scheme(scheme)
    gates = options.parse_gates()
    # Before hours of work, not after them.
    options.resolve_reconstruction()
    others = open_runtimes([name for name in options.runtime if name != "native"])
    model = stages.load(shop)
    recipe = stages.recipe_of(shop, model)
    folders = bundle_folders(options, model=model.name, targets=[target.name for target in targets])
    for folder in folders:
        check_replaceable(folder)
        _say_what_is_replaced(shop, folder)
    labelled = None
    if options.eval is not None:
        labelled = read_labelled(
            options.eval,
            preprocessing=model.preprocessing,
            class_names=model.class_names,
            class_ids=model.class_ids,
        )
        _say_what_is_skipped(shop, options.eval)
    if options.calib.strip().startswith("images:"):
        _say_what_is_skipped(shop, Path(options.calib.strip().removeprefix("images:")).expanduser())
    if on_plan is not None:
        on_plan(
            describe_plan(
                options,
                model=model,
                recipe=recipe,
                preview=calibrating.preview(recipe, store=shop.store),
                labelled=len(labelled.images) if labelled is not None else None,
                targets=targets,
                folders=folders,
            )
        )
    inputs = _prepare(shop, model, labelled, stages.calibrate(shop, model, recipe))
    return tuple(
        _build_one(shop, inputs, target, gates=gates, out=folder, others=others)
        for target, folder in zip(targets, folders, strict=True)
    )


def bundle_folders(options: BuildOptions, *, model: str, targets: Sequence[str]) -> list[Path]:
    """Where the bundles go: OUT, or OUT/TARGET of several targets; without OUT a folder in dist for each
    model, scheme and target.
    """
    if options.out is not None:
        return [options.out if len(targets) == 1 else options.out / target for target in targets]
    scheme = options.parse_scheme().name.replace(":", "-")
    return [Path("dist") / f"{model}-{scheme}-{target}" for target in targets]


def calibrate_only(
    options: BuildOptions, *, progress: Progress | None = None, note: Callable[[str], None] | None = None
) -> CalibrationSet:
    """The calibration set that a build with these options uses, made where it is not in the cache yet."""
    shop = _open_workshop(options, progress, note)
    model = stages.load(shop)
    made = stages.calibrate(shop, model, stages.recipe_of(shop, model))
    _tell(shop, _about_images(made))
    return made


def _open_workshop(
    options: BuildOptions, progress: Progress | None, note: Callable[[str], None] | None
) -> Workshop:
    log = StageLog(note or (lambda _: None))
    return Workshop(
        options=options, store=Store(options.cache), progress=progress or SilentProgress(), log=log
    )


def _say_what_is_replaced(shop: Workshop, folder: Path) -> None:
    """A bundle of the same command is made anew; one of another command would be lost without a word."""
    if not (folder.is_dir() and any(folder.iterdir())):
        return
    former = read_bundle(folder).manifest.reproduce
    if former != command_line(shop.options):
        shop.log.note(
            f"{folder} holds the bundle of another build, which this one replaces: {former}; hint: "
            "--out DIR keeps both"
        )


def _say_what_is_skipped(shop: Workshop, folder: Path) -> None:
    skipped = skipped_files(folder) if folder.is_dir() else {}
    if skipped:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in skipped.items())
        shop.log.note(
            f"{folder}: left out {sum(skipped.values())} files that are no "
            f"{', '.join(sorted(SUFFIXES))}: {kinds}"
        )


def _prepare(
    shop: Workshop, model: FloatModel, labelled: LabelledImages | None, calibration: CalibrationSet
) -> _Inputs:
    count = shop.options.resolve_validation_images(model.preprocessing.size)
    source = labelled.images if labelled is not None else calibration.open_images()
    warnings = (*zero_weights(zero_layers(model)), *_about_images(calibration))
    _tell(shop, warnings)
    return _Inputs(
        model=model,
        model_key=model_key(model),
        calibration=calibration,
        drawing=calibrating.set_details(shop.store, calibration.recipe_key),
        labelled=labelled,
        images=np.ascontiguousarray(source[:count]),
        warnings=warnings,
    )


def _about_images(calibration: CalibrationSet) -> tuple[BuildWarning, ...]:
    return tuple(
        calibrating.variety_warnings(
            calibrating.measure_variety(calibration.open_images()[: calibration.count])
        )
    )


def _tell(shop: Workshop, warnings: Sequence[BuildWarning]) -> None:
    for warning in warnings:
        shop.log.note(warning.text())


def _build_one(
    shared: Workshop,
    inputs: _Inputs,
    target: Target,
    *,
    gates: list[evaluate.Gate],
    out: Path,
    others: Sequence[Runtime],
) -> BuildOutcome:
    shop = replace(shared, log=shared.log.copy())
    options, model = shop.options, inputs.model
    quantized = stages.quantize(
        shop, model, inputs.calibration, target, scheme=options.parse_scheme(), model_key=inputs.model_key
    )
    lowered = stages.lower(shop, quantized, target)
    pixels = normalise(inputs.images, preprocessing=model.preprocessing)
    with shop.log.stage("validate"):
        simulation = open_simulation(quantized.model)
        report = validate(
            lowered,
            pixels,
            target,
            simulation=simulation,
            progress=shop.progress,
            runtimes=others,
            prove=prove,
        )
        used = used_forms(lowered.model_path, input_shape=(1, *pixels.shape[1:]))
        report = replace(report, proofs=with_evidence(report.proofs, used, portable=target.portable))
    metrics, about_outputs = _evaluate(shop, inputs, quantized, lowered, target)
    warnings = (*about_outputs, *unmeasured_versions(report.runtimes, portable=target.portable))
    _tell(shop, warnings)
    results = evaluate.check_gates(
        gates, evaluate.gate_values(metrics, mismatches=_mismatches(report)), reasons=metrics.reasons
    )
    with shop.log.stage("golden vectors"):
        verified = report.verdict == "exact"
        codes, _ = golden(lowered, pixels[:1], target, verified=verified)
        count = golden_count(sum(array.nbytes for array in codes.values()))
        codes, output = golden(lowered, pixels[:count], target, verified=verified)
    latency = _latency(shop, inputs, lowered, target)
    if quantized.model.portable_forms:
        with shop.log.stage("cost of portable forms"):
            cost = portable_cost(
                latency.model_ms,
                quantized.model.portable_forms,
                session=target.session,
                progress=shop.progress,
            )
    else:
        cost = None
    slow = tuple(slower_than_float(latency))
    _tell(shop, slow)
    manifest = build_manifest(
        model=ModelEntry(name=model.name, source=model.source, sha256=model.sha256),
        target=target,
        calibration=inputs.calibration,
        drawing=inputs.drawing,
        quantized=quantized.model,
        lowered=lowered,
        validation=report,
        latency=latency,
        portable_cost=cost,
        metrics=metrics,
        gates=results,
        warnings=(*inputs.warnings, *warnings, *slow),
        preprocessing=model.preprocessing,
        class_names=model.class_names,
        environment=describe_environment(),
        reproduce=command_line(options),
        timings_s=shop.log.seconds,
    )
    bundle = release(
        out=out,
        manifest=manifest,
        lowered=lowered,
        golden_inputs=pixels[:count],
        golden_codes=codes,
        golden_output=output,
        report_html=render(manifest, strip=_strip(inputs)),
    )
    return BuildOutcome(bundle=bundle, failures=_failures(report, results))


def _latency(shop: Workshop, inputs: _Inputs, lowered: LoweredGraph, target: Target) -> BuildLatency:
    """Of the file beside the float model, or alone where torch cannot export that or the runtime not run it:
    no build fails here.
    """
    reason, plain = "", None
    try:
        plain = stages.float_file(shop, inputs.model, model_key=inputs.model_key)
        with shop.log.stage("latency"):
            return build_latency(lowered.model_path, plain, session=target.session, progress=shop.progress)
    except StoreError:
        raise
    except MixportError as error:
        reason = str(error)
    shop.log.note(f"latency: the float model is not measured: {reason}")
    with shop.log.stage("latency"):
        return build_latency(
            lowered.model_path, None, session=target.session, progress=shop.progress, reason=reason
        )


def _evaluate(
    shop: Workshop, inputs: _Inputs, quantized: stages.Quantized, lowered: LoweredGraph, target: Target
) -> tuple[evaluate.Metrics, tuple[BuildWarning, ...]]:
    """Accuracy on the labelled images where there are some; agreement and SQNR on them, or else on the
    validation images.
    """
    model, labelled = inputs.model, inputs.labelled
    images = labelled.images if labelled is not None else inputs.images
    reference = stages.float_logits(shop, model, images, model_key=inputs.model_key)
    with shop.log.stage("evaluate"):
        predicted = predict(
            lowered.model_path,
            images,
            preprocessing=model.preprocessing,
            target=target,
            progress=shop.progress,
        )
        metrics = evaluate.measure(
            float_logits=reference,
            quantized_logits=predicted,
            labels=labelled.labels if labelled is not None else None,
            size_bytes=lowered.model_path.stat().st_size,
            float_bytes=quantized.model.float_bytes,
        )
    warnings = (
        *weak_output(metrics, quantized.model, calib=shop.options.calib, labelled=labelled is not None),
        *telling_outputs(reference, class_names=model.class_names),
    )
    return metrics, warnings


def _strip(inputs: _Inputs) -> tuple[StripImage, ...]:
    """Drawn images only: pictures of the user's own do not belong into a report that is passed on."""
    if not inputs.drawing.texts:
        return ()
    return strip_images(inputs.calibration.open_images(), inputs.drawing.texts)


def _mismatches(report: ValidationReport) -> int:
    # Checks of the whole model are in the runtimes' counts already; those of single operators are not.
    checks = sum(
        check.get("mismatches", 0)
        for kind, check in report.site_checks.items()
        if not kind.startswith("model:")
    )
    return checks + sum(result.mismatches for result in report.runtimes)


def _failures(report: ValidationReport, results: Sequence[evaluate.GateResult]) -> tuple[str, ...]:
    failures = [
        f"gate {result.gate} is not met: {result.explanation}" for result in results if not result.passed
    ]
    if report.verdict != "exact":
        first = report.divergences[:1]
        where = "".join(
            f", first at {one.site}{list(one.index)} ({one.executor}: {one.got}, not {one.expected})"
            for one in first
        )
        failures.insert(0, f"validation found a mismatch{where}{_causes(report)}")
    return (*_broken_proofs(report), *failures)


def _causes(report: ValidationReport) -> str:
    return "".join(f"; {one.text()}; repair: {one.repair}" for one in report.localisations)


def _broken_proofs(report: ValidationReport) -> tuple[str, ...]:
    broken = cast("Sequence[Mapping[str, str]]", report.proofs.get("violations", ()))
    return tuple(
        f"{one['bound']} at node {one['node']}: {one['found']}; repair: {one['repair']}" for one in broken
    )
