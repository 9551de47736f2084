"""Prepare: from a float model to a rewritten graph whose sites and layers wait for integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, fx

from mixport.model.float_model import FloatModel
from mixport.model.output_classes import signature_of
from mixport.model.programs.fx_graph import clean, module_path, record_shapes
from mixport.quantize.budget.auto_widths import levelling_scheme
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.channels.bottlenecks import change_bases
from mixport.quantize.channels.convolutions import level_convolutions
from mixport.quantize.channels.layernorms import level_layernorms
from mixport.quantize.channels.shared_weights import layers_with_shared_weights
from mixport.quantize.channels.uneven import level_uneven
from mixport.quantize.graph.capture import Captured, capture
from mixport.quantize.graph.roles import Kind
from mixport.quantize.graph.softmax_rows import numerator_bits
from mixport.quantize.graph.soundness import check_sound
from mixport.quantize.kernel_forms.few_channels import widen_few_channels
from mixport.quantize.kernel_forms.late_division import divide_after_product
from mixport.quantize.kernel_forms.repeated_channels import repeat_channels
from mixport.quantize.kernel_forms.spread_gates import spread_gates
from mixport.quantize.learn.mlps.reconstruct import ReconstructedMlps
from mixport.quantize.prepared import Prepared
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.planner import QuantizationPlan, make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.decision import Decision
from mixport.records.errors import TargetError, UnsupportedModelError
from mixport.records.opsets import WIDE_CODES_OPSET
from mixport.records.progress import Progress, SilentProgress
from mixport.records.targets import Target

_LEVEL_IMAGES = 256
_EIGHT_BITS = 8
_NORM_OPSET = 17
_OPERATORS: Mapping[Kind, str] = MappingProxyType(
    {Kind.ADD: "Add", Kind.MULTIPLY: "Mul", Kind.POOL: "GlobalAveragePool", Kind.PRODUCT: "MatMul"}
)
"""ONNX operators that run on the codes of both sides."""

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
    _refuse_missing_operators(plan, target)
    _refuse_narrow_middles(plan, target)
    _refuse_wide_softmaxes(graph, target)
    _refuse_own_norms(plan, target)
    if any(kind is Kind.PRODUCT for kind in plan.kinds.values()):
        _refuse_signed_products(target)
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


def _refuse_missing_operators(plan: QuantizationPlan, target: Target) -> None:
    """Before hours of learning; what only the file shows, movement of codes, is checked there."""
    allowed = target.operators.integer
    for site in plan.sites:
        operator = _OPERATORS.get(plan.kinds[site.source])
        wide = site.bits > _EIGHT_BITS or site.base is not None  # 16-bit sums run in float
        if operator is not None and operator not in allowed and not wide:
            raise TargetError(
                f"target {target.name}: operators.integer does not hold what the model needs: "
                f"{site.name}: integer {operator}, allowed {', '.join(allowed)}",
                hint="add the operator to the target's [operators] integer, or choose another --target",
            )


def _refuse_narrow_middles(plan: QuantizationPlan, target: Target) -> None:
    """Narrow codes start at the smallest code of their storage type: their middle is not its 0."""
    narrow = [site for site in plan.sites if site.bits < _EIGHT_BITS]
    if target.activations.zero_point == "zero" and narrow:
        raise TargetError(
            f"target {target.name}: activations.zero_point 'zero' with {narrow[0].bits} bits for "
            f"{narrow[0].name}, allowed 8 bits: narrow codes have another zero point",
            hint="a scheme with a8, or a target with zero_point 'any'",
        )


def _refuse_wide_softmaxes(graph: fx.GraphModule, target: Target) -> None:
    """A softmax that is not divided behind a product has numerators of more than 8 bits."""
    if not target.portable or max(target.activations.stream_bits) > _EIGHT_BITS:
        return
    for node in graph.graph.nodes:
        bits = numerator_bits(node)
        if bits is not None and bits > _EIGHT_BITS:
            raise TargetError(
                f"target {target.name}: activations.stream_bits does not hold what the model needs: "
                f"{module_path(node) or node.name}: numerators of a softmax of {bits} bits, allowed 8",
                hint="add 16 to the target's [activations] stream_bits, or choose another --target"
                if target.graph.opset >= WIDE_CODES_OPSET
                else f"choose another --target: 16-bit codes came with opset {WIDE_CODES_OPSET}",
            )


def _refuse_own_norms(plan: QuantizationPlan, target: Target) -> None:
    """A target that is not portable keeps ONNX's LayerNormalization; what else its opset lacks only the file
    shows.
    """
    norm = next((node for node, kind in plan.kinds.items() if kind is Kind.NORM), None)
    if norm is not None and not target.portable and target.graph.opset < _NORM_OPSET:
        raise TargetError(
            f"target {target.name}: graph.opset {target.graph.opset} does not have what the model needs: "
            f"{module_path(norm) or norm.name}: LayerNormalization, which came with opset {_NORM_OPSET}",
            hint="--portable writes it with older operators; or choose another --target",
        )


def _refuse_signed_products(target: Target) -> None:
    """Pairs of int8 x int8 products leave int16 whatever the codes are chosen to be: weights can be repaired,
    activations cannot.
    """
    limit = target.accumulator.pair_limit
    if target.activations.storage == "int8" and limit is not None:
        raise TargetError(
            f"target {target.name}: activations.storage int8 with accumulator.pair_limit {limit}: the model "
            "multiplies activations by activations (attention), whose pairs of products could leave that",
            hint="a target with storage uint8, or without pair_limit where every machine sums in 32 bits",
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
