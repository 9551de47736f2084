"""One target's bundle, from the float model and the images, which do not depend on the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.details import SetDetails
from mixport.calibration.variety import measure_variety, variety_warnings
from mixport.model.float_model import FloatModel
from mixport.pipeline import stages
from mixport.pipeline.build_plan import BuildPlan
from mixport.pipeline.latency import BuildLatency, build_latency
from mixport.pipeline.manifest_entries import build_manifest
from mixport.pipeline.portable_cost import portable_cost
from mixport.pipeline.stages import StageContext
from mixport.pipeline.warnings import (
    slower_than_float,
    telling_outputs,
    unmeasured_versions,
    weak_output,
)
from mixport.quantize.emit.simulate import open_simulation
from mixport.records.calibration_set import CalibrationSet
from mixport.records.decision import BuildWarning
from mixport.records.errors import MixportError, StoreError
from mixport.records.machine import describe_environment
from mixport.records.quantized_model import LoweredGraph
from mixport.records.targets import Target
from mixport.records.validation_report import ValidationReport
from mixport.release import evaluate
from mixport.release.bundle import ReleaseBundle, golden_count, release
from mixport.release.manifest import ModelEntry
from mixport.release.report import StripImage, render, strip_images
from mixport.storage.images import LabelledImages, normalise
from mixport.validate.conformance.evidence import with_evidence
from mixport.validate.conformance.oldest_runtime import contents_of, oldest_onnxruntime
from mixport.validate.conformance.used_forms import UsedForm, used_forms
from mixport.validate.interpreter.graph import read_graph
from mixport.validate.proof.prove import prove
from mixport.validate.run.golden import golden
from mixport.validate.run.predict import predict
from mixport.validate.target_check import require_fit
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
class BuildInputs:
    """What does not depend on the target: the float model and the images."""

    model: FloatModel
    model_key: str
    calibration: CalibrationSet
    drawing: SetDetails
    labelled: LabelledImages | None
    images: NDArray[np.uint8]
    warnings: tuple[BuildWarning, ...]


def build_target(
    shared: StageContext, plan: BuildPlan, inputs: BuildInputs, target: Target, *, out: Path
) -> BuildOutcome:
    """One bundle. Raises TargetError where the model needs what the target does not have."""
    context, model = replace(shared, log=shared.log.copy()), inputs.model
    images, key = inputs.calibration, inputs.model_key
    smallest = stages.measure_smallest(context, plan, model, images, target, model_key=key)
    quantized = stages.quantize(context, plan, model, images, target, model_key=key, smallest_bytes=smallest)
    lowered = stages.lower(context, quantized, target)
    with context.log.stage("target"):
        require_fit(lowered.model_path, target)
    pixels = normalise(inputs.images, preprocessing=model.preprocessing)
    with context.log.stage("validate"):
        simulation = open_simulation(quantized.model)
        report = validate(
            lowered,
            pixels,
            target,
            simulation=simulation,
            progress=context.progress,
            runtimes=plan.runtimes,
            prove=prove,
        )
        used = used_forms(lowered.model_path, input_shape=(1, *pixels.shape[1:]))
        report = replace(report, proofs=with_evidence(report.proofs, used, portable=target.portable))
    metrics, about_outputs = _evaluate(context, plan, inputs, quantized, lowered, target)
    warnings = (*about_outputs, *unmeasured_versions(report.runtimes, portable=target.portable))
    tell(context, warnings)
    results = evaluate.check_gates(
        plan.gates, evaluate.gate_values(metrics, mismatches=_mismatches(report)), reasons=metrics.reasons
    )
    with context.log.stage("golden vectors"):
        verified = report.verdict == "exact"
        codes, _ = golden(lowered, pixels[:1], target, verified=verified)
        count = golden_count(sum(array.nbytes for array in codes.values()))
        codes, output = golden(lowered, pixels[:count], target, verified=verified)
    latency = _latency(context, inputs, lowered, target)
    if quantized.model.composites:
        with context.log.stage("cost of portable forms"):
            cost = portable_cost(
                latency.model_ms,
                quantized.model.composites,
                session=target.session,
                progress=context.progress,
            )
    else:
        cost = None
    slow = tuple(slower_than_float(latency))
    tell(context, slow)
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
        reproduce=plan.command,
        timings_s=context.log.seconds,
        trained=plan.trained,
        oldest_onnxruntime=_oldest_onnxruntime(lowered, used),
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


def _oldest_onnxruntime(lowered: LoweredGraph, used: Sequence[UsedForm]) -> str | None:
    contents = contents_of(read_graph(lowered.model_path), used)
    return None if contents is None else oldest_onnxruntime(contents).version


def _latency(
    context: StageContext, inputs: BuildInputs, lowered: LoweredGraph, target: Target
) -> BuildLatency:
    """Of the file beside the float model, or alone where torch cannot export that or the runtime not run it:
    no build fails here.
    """
    reason, plain = "", None
    try:
        plain = stages.float_file(context, inputs.model, model_key=inputs.model_key)
        with context.log.stage("latency"):
            return build_latency(lowered.model_path, plain, session=target.session, progress=context.progress)
    except StoreError:
        raise
    except MixportError as error:
        reason = str(error)
    context.log.note(f"latency: the float model is not measured: {reason}")
    with context.log.stage("latency"):
        return build_latency(
            lowered.model_path, None, session=target.session, progress=context.progress, reason=reason
        )


def _evaluate(
    context: StageContext,
    plan: BuildPlan,
    inputs: BuildInputs,
    quantized: stages.Quantized,
    lowered: LoweredGraph,
    target: Target,
) -> tuple[evaluate.Metrics, tuple[BuildWarning, ...]]:
    """Accuracy on the labelled images where there are some; agreement and SQNR on them, or else on the
    validation images.
    """
    model, labelled = inputs.model, inputs.labelled
    images = labelled.images if labelled is not None else inputs.images
    reference = stages.float_logits(context, model, images, model_key=inputs.model_key)
    with context.log.stage("evaluate"):
        predicted = predict(
            lowered.model_path,
            images,
            preprocessing=model.preprocessing,
            target=target,
            progress=context.progress,
        )
        metrics = evaluate.measure(
            float_logits=reference,
            quantized_logits=predicted,
            labels=labelled.labels if labelled is not None else None,
            size_bytes=lowered.model_path.stat().st_size,
            float_bytes=quantized.model.float_bytes,
        )
    warnings = (
        *weak_output(metrics, quantized.model, calib=plan.calibration.method, labelled=labelled is not None),
        *telling_outputs(reference, class_names=model.class_names),
    )
    return metrics, warnings


def _strip(inputs: BuildInputs) -> tuple[StripImage, ...]:
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


def about_images(calibration: CalibrationSet) -> tuple[BuildWarning, ...]:
    """What is worth a look about the calibration images."""
    return tuple(variety_warnings(measure_variety(calibration.open_images()[: calibration.count])))


def tell(context: StageContext, warnings: Sequence[BuildWarning]) -> None:
    """Say warnings while the build runs."""
    for warning in warnings:
        context.log.note(warning.text())
