"""Prepare: from a float model to a rewritten graph whose sites and layers wait for integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, fx

from mixport.model.float_model import FloatModel
from mixport.model.output_classes import signature_of
from mixport.model.programs.fx_graph import clean, record_shapes
from mixport.quantize.budget.auto_widths import levelling_scheme
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.channels.bottlenecks import change_bases
from mixport.quantize.channels.convolutions import level_convolutions
from mixport.quantize.channels.layernorms import level_layernorms
from mixport.quantize.channels.shared_weights import layers_with_shared_weights
from mixport.quantize.channels.uneven import level_uneven
from mixport.quantize.graph.capture import Captured, capture
from mixport.quantize.graph.roles import Kind
from mixport.quantize.graph.soundness import check_sound
from mixport.quantize.kernel_forms.few_channels import widen_few_channels
from mixport.quantize.kernel_forms.late_division import divide_after_product
from mixport.quantize.kernel_forms.repeated_channels import repeat_channels
from mixport.quantize.kernel_forms.spread_gates import spread_gates
from mixport.quantize.learn.mlps.reconstruct import ReconstructedMlps
from mixport.quantize.prepared import Prepared
from mixport.quantize.refusals import refuse_what_is_missing
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.planner import make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.decision import Decision
from mixport.records.errors import UnsupportedModelError
from mixport.records.progress import Progress, SilentProgress
from mixport.records.targets import Target

_LEVEL_IMAGES = 256

AlterMlps = Callable[[Captured, Scheme], ReconstructedMlps]
"""Alters the MLPs of a captured graph in place, and says which."""


def prepare(
    model: FloatModel,
    calibration: CalibrationSet,
    target: Target,
    *,
    scheme: Scheme,
    learned: bool = False,
    alter_mlps: AlterMlps | None = None,
    table: WidthTable | None = None,
    level: bool = True,
    progress: Progress | None = None,
) -> Prepared:
    """Capture the model, rewrite its graph for what is to come, and plan its sites. No integer is chosen
    here.

    Args:
        model: float model.
        calibration: images that rewrites are measured on.
        target: what storage, zero points, scales and shapes are allowed.
        scheme: widths.
        learned: codes will be learned, so that each layer has integers of its own, and levelling may be
            weaker.
        alter_mlps: what learns MLPs before anything is quantised; None leaves them.
        table: widths that differ from those of the scheme.
        level: even out the ranges of channels, as measured on the images; False leaves every weight as it is,
            so that graph and sites depend on the model, the scheme and the target alone: training moves
            weights itself.
        progress: bars.

    Raises:
        UnsupportedModelError: torch.export cannot capture the model, or it has nothing to quantise.
        TargetError: the target has no such widths, or no form for what the model needs, as a safe one for a
            product of activations.
        BadOptionError: the table names a tensor that is not there, or a width that the target does not have.
    """
    target.check_scheme(scheme)
    signature = signature_of(model)
    batches = CalibrationBatches(model=model, calibration=calibration)
    dynamic = target.graph.shapes == "dynamic-batch" and not model.one_image
    captured = capture(model.module, input_shape=model.input_shape, dynamic_batch=dynamic)
    graph = captured.graph
    check_sound(model, captured, batches.pair())
    mlps = ReconstructedMlps() if alter_mlps is None else alter_mlps(captured, scheme)
    rule = scale_rule(target)
    levelled = list[Decision]()
    if level:
        levelled = _level_channels(
            captured,
            batches,
            levelling_scheme(scheme, target),
            rule=rule,
            learned=learned,
            progress=progress or SilentProgress(),
        )
    reshaped = [
        *widen_few_channels(graph, target),
        *repeat_channels(graph, target),
        *spread_gates(graph, target),
        *divide_after_product(graph, target, bits=scheme.activation_bits),
    ]
    clean(graph)
    record_shapes(graph, torch.zeros((captured.example_batch, *model.input_shape[1:])))
    activations: Mapping[str, int] = MappingProxyType({}) if table is None else table.activations
    stream_bits = max(target.activations.stream_bits)
    plan = make_plan(
        graph, scheme, stream_bits=stream_bits, portable=target.portable, activation_bits=activations
    )
    if not any(kind is Kind.LAYER for kind in plan.kinds.values()):
        raise UnsupportedModelError(f"{model.source}: no convolution or linear layer to quantise")
    refuse_what_is_missing(graph, plan, target)
    widths = scheme_widths(graph, plan, scheme, table=table)
    if table is not None:
        table.check(
            layers=[width.name for width in widths.values()],
            sites=plan.free_tensors,
            weight_bits=target.held_widths,
            activation_bits=target.activations.bits,
        )
    return Prepared(
        model=model,
        signature=signature,
        captured=captured,
        target=target,
        scheme=scheme,
        rule=rule,
        plan=plan,
        widths=widths,
        table=table or WidthTable(),
        mlps=mlps.records,
        mlp_iters=mlps.iters,
        decisions=(
            *model.notes,
            *captured.decisions,
            *mlps.decisions,
            *levelled,
            *reshaped,
            *plan.decisions,
        ),
    )


def scale_rule(target: Target) -> ScaleRule:
    """What the target allows of scales and zero points."""
    return ScaleRule(
        zero_point="any" if target.activations.zero_point == "any" else "middle", grid=target.scale_grid
    )


def _level_channels(
    captured: Captured,
    batches: CalibrationBatches,
    scheme: Scheme,
    *,
    rule: ScaleRule,
    learned: bool,
    progress: Progress,
) -> list[Decision]:
    images, graph = batches.all(most=_LEVEL_IMAGES), captured.graph
    few = batches.of(batches.few(), dynamic_batch=captured.dynamic_batch)
    decisions = level_uneven(graph, few, narrow=scheme.activation_bits < 8)
    kept = frozenset[fx.Node]()
    if not learned:  # learned rounding gives each layer integers of its own, whatever its weights are
        kept, shared = layers_with_shared_weights(graph)
        decisions += shared
    with progress.track("channels", total=3 * len(images)) as advance:
        for level in (level_layernorms, change_bases, partial(level_convolutions, learned=learned)):
            counted = _counted(batches.of(images, dynamic_batch=captured.dynamic_batch), advance)
            decisions += level(graph, counted, images=len(images), scheme=scheme, rule=rule, kept=kept)
    return decisions


def _counted(batches: Iterator[Tensor], advance: Callable[[int], None]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        advance(len(batch))
