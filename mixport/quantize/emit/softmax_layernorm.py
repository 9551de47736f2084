"""Softmax and LayerNorm in forms that give the same result on every machine: see
mixport.arithmetic.portable_float.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    constant,
    module_path,
    only_user,
    shape_of,
    tensor_arg,
)
from mixport.quantize.emit.fixed_exponents import fix_exponent
from mixport.quantize.emit.insert import code_params
from mixport.quantize.graph.marks import short_op
from mixport.quantize.graph.roles import Kind
from mixport.quantize.graph.softmax_rows import numerator_bits
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import CompositeForm, FormKind

_KINDS: Mapping[Any, FormKind] = MappingProxyType(
    {
        OPS.softmax.default: "softmax",
        OPS.coded_numerators.default: "attention",
        OPS.layer_norm.default: "layer_norm",
    }
)


def insert_softmax_layernorm(
    graph: fx.GraphModule, plan: QuantizationPlan, *, portable: bool
) -> list[Decision]:
    """Replace every softmax over the last axis, and every normalisation that reads codes; returns what was
    left in float, and why.

    Called once the quantisers stand: a normalisation takes the scale of the codes it reads. A target that is
    not portable keeps both.
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target is aten.softmax.int:
            made = _softmax(graph, node) if portable else None
            why = "softmax over another axis than the last, over more than 65,536 scores, or in another type"
        elif plan.kinds.get(node) is Kind.NORM:
            made = _layer_norm(graph, node) if portable else None
            why = "the normalisation reads no codes"
        elif node.target is OPS.softmax_numerators.default:
            made, why = fix_exponent(graph, node, bits=_bits_behind(node)), ""
        else:
            continue
        if made is None:
            reason = (
                why
                if portable
                else "the build asks for the runtime's own kernel, which differs between machines"
            )
            decisions.append(
                Decision(
                    where=module_path(node) or node.name, what=f"{short_op(node)} left in float", why=reason
                )
            )
            continue
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
    return decisions


def composites_of(graph: fx.GraphModule, *, batch: int) -> tuple[CompositeForm, ...]:
    """Every softmax and normalisation in portable form, in graph order.

    Args:
        graph: behind `insert_softmax_layernorm`.
        batch: images in the traced batch.
    """
    found: list[CompositeForm] = []
    for node in graph.graph.nodes:
        kind = _KINDS.get(node.target)
        if kind is not None:
            first, *rest = shape_of(tensor_arg(node, 0))
            found.append(CompositeForm(kind=kind, shape=(max(1, first // batch), *rest)))
    return tuple(found)


def _bits_behind(numerators: fx.Node) -> int:
    """Of the quantiser that alone reads them."""
    quantiser = only_user(numerators)
    params = None if quantiser is None else code_params(quantiser)
    if params is None:
        raise InvariantError(f"numerators {numerators.name} have no codes")
    return (params.qmax + 1).bit_length() - 1


def _softmax(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    bits = numerator_bits(node)
    if bits is None:
        return None
    return call(graph, OPS.softmax.default, tensor_arg(node, 0), bits, before=node, like=node)


def _layer_norm(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x = tensor_arg(node, 0)
    params = code_params(x)
    if params is None:
        return None
    _, axes, weight, bias, epsilon = arguments(node, None, None, 1e-5, True, after=2)[:5]
    length = int(axes[0])
    name = module_path(node) or node.name
    weights = torch.ones(length) if weight is None else constant(graph, weight)
    offsets = torch.zeros(length) if bias is None else constant(graph, bias)
    assert weights is not None and offsets is not None
    return call(
        graph,
        OPS.layer_norm.default,
        x,
        add_constant(graph, weights.contiguous(), name=f"{name}_gamma", before=node),
        add_constant(graph, offsets.contiguous(), name=f"{name}_beta", before=node),
        name,
        float(epsilon),
        params.scale,
        params.zero_point,
        params.storage,
        before=node,
        like=node,
    )
