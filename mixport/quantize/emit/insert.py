"""Write the plan into the graph: quantisers, tables and integer weights as mixport:: operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from mixport.arithmetic import integer
from mixport.arithmetic.multiplication import is_product_proved, moved_scales
from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import (
    SharedConstants,
    add_constant,
    arguments,
    aten,
    call,
    groups_of,
    live_nodes,
    only_user,
    tensor_arg,
    tensor_list_arg,
)
from mixport.quantize.emit.tables import make_table
from mixport.quantize.graph.marks import short_op
from mixport.quantize.graph.roles import CODE_MOVES
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.integers.settle import RoundedLayer, settle
from mixport.quantize.sites.planner import QuantizationPlan, SitePlan
from mixport.quantize.sites.widths import LayerWidths
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import ActivationSite, WeightSite
from mixport.records.targets import Target


def insert_activations(
    graph: fx.GraphModule, plan: QuantizationPlan, params: Mapping[str, QuantParams], target: Target
) -> list[ActivationSite]:
    """Insert every activation quantiser of the plan; returns the sites in graph order."""
    tied = {name for group in plan.groups for name in group.members}
    products = {
        site.source: params[site.name]
        for site in plan.sites
        if site.base is None and site.name in tied and not site.chain
    }
    placed: dict[fx.Node, fx.Node] = {}
    sites: list[ActivationSite] = []
    for site in plan.sites:
        if site.base is not None:
            sites.extend(_requantise(graph, site, params[site.name], placed))
            continue
        own = params[site.name]
        if site.chain:
            accepts = _gate_rule(site, products, placed, portable=target.portable)
            quantised, own = _table(graph, site, own, target=target, tied=site.name in tied, accepts=accepts)
        else:
            source = site.tensor if site.bounds is None else tensor_arg(site.tensor, 0)
            own = _product_params(
                source, own, free=target.portable and target.scale.form == "float32" and site.name not in tied
            )
            quantised = _quantiser(graph, source, site.name, own, after=site.tensor)
        _redirect_readers(site.tensor, quantised)
        placed[site.tensor] = quantised
        sites.append(_record(site, site.name, own))
    return sites


def insert_weights(
    graph: fx.GraphModule, widths: LayerWidths, integers: Mapping[fx.Node, LayerIntegers], target: Target
) -> tuple[list[WeightSite], list[Decision]]:
    """Replace every layer's weight and bias by its integers. Layers must already read quantised
    activations.
    """
    sites: list[WeightSite] = []
    decisions: list[Decision] = []
    live = live_nodes(graph)
    constants = SharedConstants(graph)
    for node, width in widths.items():
        name, bits = width.name, width.bits
        x_params = code_params(tensor_arg(node, 0))
        if x_params is None:
            raise InvariantError(f"layer {node.name} reads no quantised activation")
        codes, bias = integers[node].codes, integers[node].bias
        layer = RoundedLayer(name=name, codes=codes, bias=bias, groups=groups_of(node))
        fixed = settle(
            layer,
            integers[node].scales,
            x=x_params,
            y=_output_params(node, live),
            pair_limit=target.accumulator.pair_limit,
            grid=target.scale_grid,
        )
        scales = fixed.scales
        decisions.extend(fixed.decisions)
        scale_node = constants.add(torch.as_tensor(scales), name=f"{name}_weight_scale", before=node)
        code_node = constants.add(torch.as_tensor(codes), name=f"{name}_weight_codes", before=node)
        operands = list(node.args)
        operands[1] = call(
            graph,
            OPS.dequantize_weight.default,
            code_node,
            scale_node,
            f"{name}.weight",
            bits,
            before=node,
            like=node,
        )
        if bias is not None:
            bias_codes, bias_scale = integer.quantise_bias(bias, x_scale=x_params.scale, w_scale=scales)
            bias_node = constants.add(torch.as_tensor(bias_codes), name=f"{name}_bias_codes", before=node)
            bias_scale_node = constants.add(
                torch.as_tensor(np.ascontiguousarray(bias_scale)), name=f"{name}_bias_scale", before=node
            )
            operands[2] = call(
                graph,
                OPS.dequantize_weight.default,
                bias_node,
                bias_scale_node,
                f"{name}.bias",
                32,
                before=node,
                like=node,
            )
        node.args = tuple(operands)
        sites.append(
            WeightSite(
                name=name,
                op=short_op(node),
                bits=bits,
                storage=target.weights.storage[bits],
                shape=tuple(codes.shape),
                input_site=site_name(tensor_arg(node, 0)),
                reason=width.reason,
            )
        )
    return sites, decisions


def code_params(node: fx.Node) -> QuantParams | None:
    """Scale and zero point of the codes behind a tensor, looking through data movement; None where it is
    float.
    """
    origin = code_origin(node)
    if origin is None:
        return None
    if origin.target is OPS.lookup.default:
        found = arguments(origin)
        scale, zero_point, qmin, qmax = found[5:9]
        shift = 128 if found[10] == "int8" else 0
        return QuantParams(
            scale=scale,
            zero_point=zero_point - shift,
            qmin=qmin - shift,
            qmax=qmax - shift,
            storage=found[10],
        )
    _, _, scale, zero_point, qmin, qmax, storage = arguments(origin)
    return QuantParams(scale=scale, zero_point=zero_point, qmin=qmin, qmax=qmax, storage=storage)


def site_name(node: fx.Node) -> str | None:
    """Name of the site whose codes a tensor holds, None where it is float."""
    origin = code_origin(node)
    if origin is None:
        return None
    return str(origin.args[2] if origin.target is OPS.lookup.default else origin.args[1])


def code_origin(node: fx.Node) -> fx.Node | None:
    """The quantiser or table that made the codes of a tensor; the first operand's for a concat, whose
    operands are alike.
    """
    while True:
        if node.target in {OPS.quantize_dequantize.default, OPS.lookup.default}:
            return node
        if node.target in {aten.cat.default, aten.concat.default}:
            node = tensor_list_arg(node, 0)[0]
        elif node.target in CODE_MOVES:
            node = tensor_arg(node, 0)
        else:
            return None


def _quantiser(
    graph: fx.GraphModule, source: fx.Node, name: str, params: QuantParams, *, after: fx.Node
) -> fx.Node:
    with graph.graph.inserting_after(after):
        node = graph.graph.call_function(
            OPS.quantize_dequantize.default,
            (source, name, params.scale, params.zero_point, params.qmin, params.qmax, params.storage),
        )
    _copy_provenance(node, source)
    return node


def _redirect_readers(node: fx.Node, quantised: fx.Node) -> None:
    """Every reader of `node` but the quantiser itself reads its codes."""

    def moves(user: fx.Node) -> bool:
        return user is not quantised

    node.replace_all_uses_with(quantised, delete_user_cb=moves)


def _requantise(
    graph: fx.GraphModule, site: SitePlan, params: QuantParams, placed: dict[fx.Node, fx.Node]
) -> list[ActivationSite]:
    """A further width for some readers of a tensor: one quantiser for each distinct operand they read."""
    operands: dict[fx.Node, list[fx.Node]] = {}
    for consumer, operand in site.consumers:
        operands.setdefault(placed.get(operand, operand), []).append(consumer)
    records: list[ActivationSite] = []
    for i, (operand, consumers) in enumerate(operands.items()):
        name = site.name if i == 0 else f"{site.name}.{i + 1}"
        quantised = _quantiser(graph, operand, name, params, after=operand)
        for consumer in consumers:
            consumer.replace_input_with(operand, quantised)
        records.append(_record(site, name, params))
    return records


def _table(
    graph: fx.GraphModule,
    site: SitePlan,
    params: QuantParams,
    *,
    target: Target,
    tied: bool,
    accepts: Callable[[QuantParams], bool],
) -> tuple[fx.Node, QuantParams]:
    """The chain of one-value functions as a 256-entry table, and the parameters of its codes; see
    mixport.quantize.emit.tables.
    """
    head, tail = site.chain[0], site.chain[-1]
    source = tensor_arg(head, 0)
    inputs = code_params(source)
    if inputs is None or inputs.storage != "uint8":
        raise InvariantError(f"table {site.name} reads no 8-bit codes")
    free = not tied and target.scale.form == "float32"
    made = make_table(
        site.chain, inputs, params, floats=frozenset(target.functions.float), may_move=free, accepts=accepts
    )
    params = made.params
    table = add_constant(graph, torch.as_tensor(made.entries), name=f"{site.name}_table", before=tail)
    with graph.graph.inserting_after(tail):
        node = graph.graph.call_function(
            OPS.lookup.default,
            (
                source,
                table,
                site.name,
                inputs.scale,
                inputs.zero_point,
                params.scale,
                params.zero_point,
                params.qmin,
                params.qmax,
                made.form,
                "uint8",
            ),
        )
    _copy_provenance(node, tail)
    return node, params


def _gate_rule(
    site: SitePlan,
    products: Mapping[fx.Node, QuantParams],
    placed: Mapping[fx.Node, fx.Node],
    *,
    portable: bool,
) -> Callable[[QuantParams], bool]:
    """What a table's scale should satisfy: where its only reader multiplies, and the product's scale is tied,
    that product is proved.
    """
    reader = only_user(site.tensor)
    y = products.get(reader) if reader is not None and reader.target is aten.mul.Tensor else None
    others = (
        [operand for operand in reader.all_input_nodes if operand is not site.tensor]
        if reader is not None
        else []
    )
    x = code_params(placed.get(others[0], others[0])) if len(others) == 1 else None
    if y is None or x is None or not portable or "int16" in (x.storage, y.storage):
        return lambda params: True
    return lambda params: is_product_proved(x, params, y)


def _product_params(source: fx.Node, params: QuantParams, *, free: bool) -> QuantParams:
    """Those of a product of two code tensors, its scale moved by units in the last place to where all
    machines give the same codes.
    """
    if (
        not free
        or source.target is not aten.mul.Tensor
        or params.storage != "uint8"
        or len(source.all_input_nodes) != 2
    ):
        return params
    a, b = (code_params(operand) for operand in source.all_input_nodes)
    if a is None or b is None or "int16" in (a.storage, b.storage):
        return params
    moved = (replace(params, scale=scale) for scale in moved_scales(params.scale))
    return next((one for one in moved if is_product_proved(a, b, one)), params)


def _output_params(node: fx.Node, live: set[fx.Node]) -> QuantParams | None:
    """Parameters of the quantiser that alone reads a layer, behind data movement; None where a float operator
    does.
    """
    users = [user for user in node.users if user in live]
    while len(users) == 1 and users[0].target in CODE_MOVES:
        users = [user for user in users[0].users if user in live]
    if len(users) != 1 or users[0].target is not OPS.quantize_dequantize.default:
        return None
    return code_params(users[0])


def _record(site: SitePlan, name: str, params: QuantParams) -> ActivationSite:
    return ActivationSite(
        name=name, op=site.op, role=site.role, bits=site.bits, params=params, reason=site.reason
    )


def _copy_provenance(node: fx.Node, source: fx.Node) -> None:
    for key in ("nn_module_stack", "stack_trace", "shape", "is_float"):
        if key in source.meta:
            node.meta[key] = source.meta[key]
