"""What a model needs and its target does not have, refused before hours of learning; the rest only the file
shows: mixport.lower.opset_check and mixport.validate.target_check.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import fx

from mixport.arithmetic.opsets import WIDE_CODES_OPSET
from mixport.model.programs.fx_graph import module_path
from mixport.quantize.graph.roles import Kind
from mixport.quantize.graph.softmax_rows import numerator_bits
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.records.errors import TargetError
from mixport.records.targets import Target

_EIGHT_BITS = 8
_NORM_OPSET = 17
_OPERATORS: Mapping[Kind, str] = MappingProxyType(
    {Kind.ADD: "Add", Kind.MULTIPLY: "Mul", Kind.POOL: "GlobalAveragePool", Kind.PRODUCT: "MatMul"}
)
"""ONNX operators that run on the codes of both sides."""


def refuse_what_is_missing(graph: fx.GraphModule, plan: QuantizationPlan, target: Target) -> None:
    """Raise TargetError, with the name of what needs it, where the target has no form for a site, a softmax,
    a normalisation or a product of activations.
    """
    _refuse_missing_operators(plan, target)
    _refuse_narrow_middles(plan, target)
    _refuse_wide_softmaxes(graph, target)
    _refuse_own_norms(plan, target)
    if any(kind is Kind.PRODUCT for kind in plan.kinds.values()):
        _refuse_signed_products(target)


def _refuse_missing_operators(plan: QuantizationPlan, target: Target) -> None:
    """Movement of codes only the file shows."""
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
