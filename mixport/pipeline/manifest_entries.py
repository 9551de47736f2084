"""From the stages' records to a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel

import mixport
from mixport.calibration.details import SetDetails
from mixport.pipeline.latency import BuildLatency
from mixport.pipeline.options.trained_input import TrainedInput
from mixport.pipeline.portable_cost import PortableCost
from mixport.records.calibration_set import CalibrationSet, Preprocessing
from mixport.records.choices.search import TensorKind
from mixport.records.decision import BuildWarning
from mixport.records.quantized_model import LoweredGraph, QuantizedModel
from mixport.records.targets import Target
from mixport.records.validation_report import ValidationReport
from mixport.release.calibration_entries import CalibrationEntry, FiltersEntry, GeneratorEntry, PromptsEntry
from mixport.release.choice_entries import ReconstructionEntry, TrainingDataEntry, TrainingEntry, WidthsEntry
from mixport.release.evaluate import GateResult, Metrics
from mixport.release.manifest import (
    GateEntry,
    GraphEntry,
    LatencyEntry,
    Manifest,
    MetricsEntry,
    ModelEntry,
    PortableCostEntry,
    PreprocessingEntry,
    SignatureEntry,
    SiteEntry,
    TargetEntry,
    WarningEntry,
)
from mixport.release.validation_entries import DecisionEntry, ValidationEntry

_Entry = TypeVar("_Entry", bound=BaseModel)


def build_manifest(
    *,
    model: ModelEntry,
    target: Target,
    calibration: CalibrationSet,
    drawing: SetDetails | None = None,
    quantized: QuantizedModel,
    lowered: LoweredGraph,
    validation: ValidationReport,
    latency: BuildLatency | None = None,
    portable_cost: PortableCost | None = None,
    metrics: Metrics,
    gates: Sequence[GateResult],
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
    environment: Mapping[str, str],
    reproduce: str,
    timings_s: Mapping[str, float],
    warnings: Sequence[BuildWarning] = (),
    trained: TrainedInput | None = None,
    oldest_onnxruntime: str | None = None,
) -> Manifest:
    """Everything but `files` and `golden_images`, which `release` fills when they exist.

    Args:
        model: the float model.
        target: target file.
        calibration: the images.
        drawing: what is known of how they were drawn.
        quantized: sites, scheme and decisions of the quantiser.
        lowered: the ONNX file and the decisions of the lowering.
        validation: verdict and evidence.
        latency: beside the float model's.
        portable_cost: latency beside the runtime's own softmax and LayerNorm; None where the model has none.
        metrics: accuracy, agreement, size.
        gates: results, in the order asked.
        preprocessing: of the model's input.
        class_names: in index order, where known.
        environment: versions and machine, by name.
        reproduce: the command line.
        timings_s: wall time of each stage, in seconds.
        warnings: what is worth a look, in the order it was seen.
        trained: training that weights, widths or integers are from.
        oldest_onnxruntime: version that is known to give the same codes.
    """
    scheme, learned = quantized.scheme, quantized.reconstruction
    return Manifest(
        signature=_part(SignatureEntry, asdict(quantized.signature)),
        mixport_version=mixport.__version__,
        model=model,
        scheme=scheme.name,
        edge_bits=scheme.edge_bits,
        convention=scheme.convention,
        target=TargetEntry(name=target.name, sha256=target.sha256, title=target.title),
        calibration=CalibrationEntry(
            method=calibration.method,
            recipe_key=calibration.recipe_key,
            content_sha256=calibration.content_sha256,
            images=calibration.count,
            generator=calibration.generator,
            generator_details=_part(GeneratorEntry, drawing.generator if drawing is not None else None),
            prompts=_part(PromptsEntry, drawing.prompts if drawing is not None else None),
            filters=_part(FiltersEntry, drawing.filters if drawing is not None else None),
        ),
        sites=(
            *_weight_sites(quantized),
            *_activation_sites(quantized, behind_islands=frozenset(validation.entry_sites)),
        ),
        metrics=MetricsEntry.model_validate(metrics, from_attributes=True),
        validation=ValidationEntry.model_validate(validation, from_attributes=True),
        latency=None if latency is None else LatencyEntry.model_validate(latency, from_attributes=True),
        portable_cost=None
        if portable_cost is None
        else PortableCostEntry.model_validate(portable_cost, from_attributes=True),
        widths=None
        if quantized.width_search is None
        else WidthsEntry.model_validate(quantized.width_search, from_attributes=True),
        reconstruction=None
        if learned is None
        else ReconstructionEntry.model_validate(learned, from_attributes=True),
        training=None if trained is None else _training(trained),
        warnings=tuple(WarningEntry.model_validate(one, from_attributes=True) for one in warnings),
        gates=tuple(GateEntry.model_validate(gate, from_attributes=True) for gate in gates),
        decisions=tuple(
            DecisionEntry.model_validate(one, from_attributes=True)
            for one in (*quantized.decisions, *lowered.decisions)
        ),
        preprocessing=PreprocessingEntry.model_validate(preprocessing, from_attributes=True),
        class_names=None if class_names is None else tuple(class_names),
        graph=GraphEntry(opset=lowered.opset, ir_version=lowered.ir_version),
        oldest_onnxruntime=oldest_onnxruntime,
        environment=dict(environment),
        reproduce=reproduce,
        timings_s={name: round(seconds, 3) for name, seconds in timings_s.items()},
    )


def _training(trained: TrainedInput) -> TrainingEntry:
    record = trained.record
    return TrainingEntry(
        method=record.method,
        taken="integers" if trained.integers else "widths" if trained.has_sites else "weights",
        data=TrainingDataEntry.model_validate(record.data.model_dump()),
        teacher=record.teacher,
        budget=record.budget,
        epochs=len(record.curve),
        record_sha256=trained.sha256,
        command=record.command,
    )


def _part(entry: type[_Entry], values: Mapping[str, Any] | None) -> _Entry | None:
    return None if values is None else entry.model_validate(values)


def _weight_sites(quantized: QuantizedModel) -> list[SiteEntry]:
    activation_bits = {site.name: site.bits for site in quantized.activations}
    sqnr_db = _sqnr_of(quantized, "weight")
    return [
        SiteEntry(
            name=site.name,
            op=site.op,
            kind="weight",
            weight_bits=site.bits,
            activation_bits=activation_bits.get(site.input_site) if site.input_site is not None else None,
            weight_storage=site.storage,
            reason=site.reason,
            role="weight",
            shape=site.shape,
            input_site=site.input_site,
            sqnr_db=sqnr_db.get(site.name),
        )
        for site in quantized.weights
    ]


def _sqnr_of(quantized: QuantizedModel, kind: TensorKind) -> dict[str, float]:
    """SQNR of the output with one tensor quantised, by its name; empty where it was not searched for."""
    return (
        {}
        if quantized.loss is None
        else {one.name: one.sqnr_db for one in quantized.loss.tensors if one.kind == kind}
    )


def _activation_sites(quantized: QuantizedModel, *, behind_islands: frozenset[str]) -> list[SiteEntry]:
    sqnr_db = _sqnr_of(quantized, "activation")
    return [
        SiteEntry(
            name=site.name,
            op=site.op,
            kind="activation",
            weight_bits=None,
            activation_bits=site.bits,
            weight_storage=None,
            reason=site.reason,
            role=site.role,
            storage=site.params.storage,
            scale=site.params.scale,
            zero_point=site.params.zero_point,
            qmin=site.params.qmin,
            qmax=site.params.qmax,
            behind_island=site.name in behind_islands,
            sqnr_db=sqnr_db.get(site.name),
        )
        for site in quantized.activations
    ]
