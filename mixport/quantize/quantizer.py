"""The quantize stage: float model and calibration images in, a program with every integer fixed out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.float_model import FloatModel
from mixport.model.output_classes import output_classes
from mixport.model.programs.fx_graph import clean, record_shapes
from mixport.model.run import batch_size, batches_of
from mixport.quantize.budget.auto_widths import Sizes, choose_widths, learned_bytes, levelling_scheme
from mixport.quantize.budget.sensitivity import nearest
from mixport.quantize.channels.bottlenecks import change_bases
from mixport.quantize.channels.convolutions import level_convolutions
from mixport.quantize.channels.layernorms import level_layernorms
from mixport.quantize.channels.shared_weights import layers_with_shared_weights
from mixport.quantize.channels.uneven import level_uneven
from mixport.quantize.emit.insert import insert_activations, insert_weights
from mixport.quantize.emit.loss_search import FloatParts, search_loss
from mixport.quantize.emit.softmax_layernorm import insert_portable_forms, portable_forms
from mixport.quantize.graph.capture import Captured, capture, export_program
from mixport.quantize.graph.roles import Kind
from mixport.quantize.graph.soundness import check_sound
from mixport.quantize.integers.nearest import nearest_integers
from mixport.quantize.kernel_forms.few_channels import widen_few_channels
from mixport.quantize.kernel_forms.late_division import divide_after_product
from mixport.quantize.kernel_forms.repeated_channels import repeat_channels
from mixport.quantize.kernel_forms.spread_gates import spread_gates
from mixport.quantize.learn.loop.unit_file import NoShelf, UnitShelf
from mixport.quantize.learn.mlps.reconstruct import ReconstructedMlps
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.learn.session import Learner
from mixport.quantize.scales.carriers import group_params
from mixport.quantize.scales.gate_params import settle_gates
from mixport.quantize.scales.histograms import Histogram, HistogramObserver, collect
from mixport.quantize.scales.pool_scales import widen_pool_scales
from mixport.quantize.scales.ranges import ATTENTION_P, OUTPUT_MARGIN, P, ScaleRule, activation_params
from mixport.quantize.sites.plan import Plan, make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.artifacts import CalibrationSet, Decision, QuantizedModel
from mixport.records.errors import BadOptionError, UnsupportedModelError
from mixport.records.progress import Progress, SilentProgress
from mixport.records.reconstruction_preset import ReconstructionOptions
from mixport.records.scheme import Scheme
from mixport.records.targets import Target
from mixport.storage.images import normalise

_PROGRAM, _RECORD = "program.pt2", "quantized.json"
_LEVEL_IMAGES = 256
_LOSS_IMAGES, _LOSS_PIXELS = (4, 32), 1 << 15
"""Fewest and most images that the output is looked at on, tensor by tensor where it is bad, and how many
pixels they have in between.
"""
_SENSITIVITY_IMAGES, _SENSITIVITY_PIXELS = (32, 256), 1 << 22
"""Fewest and most images that widths are chosen on, and how many pixels they have together in between."""


def quantize(
    model: FloatModel,
    calibration: CalibrationSet,
    target: Target,
    *,
    scheme: Scheme,
    reconstruction: ReconstructionOptions | None = None,
    smallest_bytes: int | None = None,
    workdir: Path,
    shelf: UnitShelf | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantise `model` for `target`; writes program.pt2 and quantized.json into `workdir`.

    Args:
        model: float model.
        calibration: images; statistics are streamed over them once.
        target: what storage, zero points and shapes are allowed.
        scheme: widths.
        reconstruction: how rounding is learned; None rounds to nearest.
        smallest_bytes: size of the file with the weights of every layer but the edges at the fewest bits of
            `target.budget_widths()`; needed where the scheme has a size budget.
        workdir: existing folder.
        shelf: finished units of an interrupted run, None keeps none.
        progress: bars.

    Raises:
        UnsupportedModelError, TargetError, BadOptionError.
        SizeBudgetError: no widths keep the scheme's budget.
    """
    progress = progress or SilentProgress()
    target.check_scheme(scheme)
    output_classes(model)
    dynamic = target.graph.shapes == "dynamic-batch" and not model.one_image
    captured = capture(model.module, input_shape=model.input_shape, dynamic_batch=dynamic)
    graph = captured.graph
    check_sound(model, captured, _first_images(model, calibration))
    learner = (
        None
        if reconstruction is None
        else Learner(
            model=model,
            calibration=calibration,
            options=reconstruction,
            workdir=workdir,
            shelf=shelf or NoShelf(),
            progress=progress,
        )
    )
    mlps = ReconstructedMlps() if learner is None else learner.mlps(captured, scheme)
    level_for = levelling_scheme(scheme, target)
    levelled = _level_channels(
        model,
        captured,
        calibration,
        level_for,
        rule=scale_rule(target),
        learned=reconstruction is not None,
        progress=progress,
    )
    reshaped = [
        *widen_few_channels(graph, target),
        *repeat_channels(graph, target),
        *spread_gates(graph, target),
    ]
    reshaped += divide_after_product(graph, target, bits=scheme.activation_bits)
    clean(graph)
    record_shapes(graph, torch.zeros((captured.example_batch, *model.input_shape[1:])))
    plan = make_plan(graph, scheme, stream_bits=max(target.activations.stream_bits), portable=target.portable)
    if not any(kind is Kind.LAYER for kind in plan.kinds.values()):
        raise UnsupportedModelError(f"{model.source}: no convolution or linear layer to quantise")
    float_bytes = model.float_bytes
    widths, search = scheme_widths(graph, plan, scheme), None
    if scheme.budget is not None:
        if smallest_bytes is None:
            raise BadOptionError(
                f"scheme {scheme.name} has a size budget, but smallest_bytes is not given",
                hint="mixport.pipeline.build(...)",
            )
        images = _sensitivity_images(model, calibration)
        widths, search = choose_widths(
            graph,
            widths,
            lambda: batches_of(images, model, batch_size(model) if captured.dynamic_batch else 1),
            scheme=scheme,
            target=target,
            sizes=Sizes(
                smallest=smallest_bytes,
                floats=float_bytes,
                learned=0 if reconstruction is None else learned_bytes(plan),
            ),
            images=len(images),
            rounding=nearest,
            progress=progress,
        )
    histograms = _statistics(model, captured, plan, calibration, progress)
    params = choose_params(plan, histograms, target)
    integers, raised = nearest_integers(graph, plan, widths, params, pair_limit=target.accumulator.pair_limit)
    learned = None
    if learner is not None:
        task = Task(
            graph=graph,
            plan=plan,
            widths=widths,
            params=params,
            integers=integers,
            input_shape=model.input_shape,
            dynamic_batch=captured.dynamic_batch,
            fixed_steps=scale_rule(target).power_of_two,
        )
        learned = learner.units(task)
        params, integers = learned.params, learned.integers
        raised += learned.decisions
    parts = FloatParts.of(graph, plan, widths)
    sites = insert_activations(graph, plan, params, target)
    weights, moved = insert_weights(graph, widths, integers, target)
    few = _few_images(model, calibration)
    loss = search_loss(
        graph,
        parts,
        params,
        lambda: batches_of(few, model, batch_size(model) if captured.dynamic_batch else 1),
    )
    floats = insert_portable_forms(graph, plan, portable=target.portable)
    clean(graph)
    program = export_program(graph, input_shape=model.input_shape, dynamic_batch=captured.dynamic_batch)
    archive = io.BytesIO()  # torch's own file writer aborts the process on a full disk
    torch.export.save(program, archive)
    (workdir / _PROGRAM).write_bytes(archive.getvalue())
    record = QuantizedModel(
        program_path=workdir / _PROGRAM,
        scheme=scheme,
        activations=tuple(sites),
        weights=tuple(weights),
        decisions=(
            *model.notes,
            *captured.decisions,
            *mlps.decisions,
            *levelled,
            *reshaped,
            *plan.decisions,
            *raised,
            *moved,
            *floats,
        ),
        input_shape=(captured.example_batch, *model.input_shape[1:]),
        dynamic_batch=captured.dynamic_batch,
        portable_forms=portable_forms(graph, batch=captured.example_batch),
        reconstruction=None
        if learned is None
        else replace(learned.record, mlps=mlps.records, mlp_iters=mlps.iters),
        float_bytes=float_bytes,
        width_search=search,
        loss=loss,
    )
    (workdir / _RECORD).write_bytes(TypeAdapter(QuantizedModel).dump_json(record, indent=1))
    return record


def read_quantized(workdir: Path) -> QuantizedModel:
    """Read back what `quantize` wrote; paths follow the folder."""
    record = TypeAdapter(QuantizedModel).validate_json((workdir / _RECORD).read_bytes())
    fields: dict[str, Any] = {**record.__dict__, "program_path": workdir / _PROGRAM}
    return QuantizedModel(**fields)


def scale_rule(target: Target) -> ScaleRule:
    """What the target allows of activation scales."""
    return ScaleRule(
        zero_point=target.activations.zero_point, power_of_two=target.scale.form == "power-of-two"
    )


def choose_params(plan: Plan, histograms: dict[str, Histogram], target: Target) -> dict[str, QuantParams]:
    """Scale, zero point and range of every site: tied carriers first, then the free ones."""
    rule = scale_rule(target)
    by_name = {site.name: site for site in plan.sites}
    params: dict[str, QuantParams] = {}
    for group in plan.groups:
        params.update(group_params(group, by_name, histograms, rule=rule))
    for site in plan.sites:
        if site.fixed is not None:
            params[site.name] = site.fixed
        elif site.name not in params:
            storage = "int16" if site.bits > 8 else "uint8"
            params[site.name] = activation_params(
                histograms[site.name],
                bits=site.bits,
                storage=storage,
                bounds=site.bounds,
                rule=rule,
                power=ATTENTION_P if site.op == "softmax" else P,
                margin=OUTPUT_MARGIN if site.is_output else None,
            )
    return settle_gates(plan, widen_pool_scales(plan, params, rule), rule)


def _statistics(
    model: FloatModel, captured: Captured, plan: Plan, calibration: CalibrationSet, progress: Progress
) -> dict[str, Histogram]:
    images = calibration.open_images()[: calibration.count]
    batch = batch_size(model) if captured.dynamic_batch else 1
    names = {site.tensor: site.name for site in reversed(plan.sites)}
    limits = {
        site.tensor: site.bounds[1]
        for site in plan.sites
        if site.bounds is not None and site.bounds[1] is not None
    }
    reaches = {site.tensor: site.reach for site in plan.sites if site.reach is not None}
    done = 0
    observers: dict[fx.Node, HistogramObserver] = {}
    with progress.track("statistics", total=len(images)) as advance:
        for seen, current in collect(
            captured.graph, names, batches_of(images, model, batch), limits=limits, reaches=reaches
        ):
            advance(seen - done)
            done, observers = seen, current
    per_tensor = {node: observer.result() for node, observer in observers.items()}
    return {site.name: per_tensor[site.tensor] for site in plan.sites}


def _level_channels(
    model: FloatModel,
    captured: Captured,
    calibration: CalibrationSet,
    scheme: Scheme,
    *,
    rule: ScaleRule,
    learned: bool,
    progress: Progress,
) -> list[Decision]:
    images = calibration.open_images()[: min(calibration.count, _LEVEL_IMAGES)]
    size = batch_size(model) if captured.dynamic_batch else 1
    decisions = level_uneven(
        captured.graph,
        batches_of(_few_images(model, calibration), model, size),
        narrow=scheme.activation_bits < 8,
    )
    kept = frozenset[fx.Node]()
    if not learned:  # learned rounding gives each layer integers of its own, whatever its weights are
        kept, shared = layers_with_shared_weights(captured.graph)
        decisions += shared
    with progress.track("channels", total=3 * len(images)) as advance:
        for level in (level_layernorms, change_bases, partial(level_convolutions, learned=learned)):
            batches = batches_of(images, model, size)
            decisions += level(
                captured.graph,
                _counted(batches, advance),
                images=len(images),
                scheme=scheme,
                rule=rule,
                kept=kept,
            )
    return decisions


def _counted(batches: Iterator[Tensor], advance: Callable[[int], None]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        advance(len(batch))


def _sensitivity_images(model: FloatModel, calibration: CalibrationSet) -> NDArray[np.uint8]:
    """256 small ones, fewer large ones."""
    return _spread_images(model, calibration, together=_SENSITIVITY_PIXELS, bounds=_SENSITIVITY_IMAGES)


def _few_images(model: FloatModel, calibration: CalibrationSet) -> NDArray[np.uint8]:
    """32 small ones, 4 large ones."""
    return _spread_images(model, calibration, together=_LOSS_PIXELS, bounds=_LOSS_IMAGES)


def _spread_images(
    model: FloatModel, calibration: CalibrationSet, *, together: int, bounds: tuple[int, int]
) -> NDArray[np.uint8]:
    """Evenly spaced calibration images that have so many pixels together, within bounds."""
    images = calibration.open_images()[: calibration.count]
    pixels = model.input_shape[2] * model.input_shape[3]
    wanted = min(len(images), int(np.clip(together // pixels, *bounds)))
    return np.asarray(images[np.linspace(0, len(images) - 1, wanted).astype(np.int64)])


def _first_images(model: FloatModel, calibration: CalibrationSet) -> Tensor:
    """Two calibration images; the second one mirrored where there is only one."""
    images = np.asarray(calibration.open_images()[:2])
    pair = images if len(images) == 2 else np.concatenate([images, images[:, :, ::-1]])
    return torch.as_tensor(normalise(np.ascontiguousarray(pair), preprocessing=model.preprocessing))
