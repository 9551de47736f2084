"""LayerNorm reparameterisation (RepQ-ViT, ICCV 2023): the channels of a normalised tensor brought to one
range before it is quantised.

The channels of a LayerNorm's output differ widely, and one scale for all wastes codes. Where only linear
layers read the output, a shift and a ratio per channel move into them: weight / ratio and (bias - shift) /
ratio of the norm, weight * ratio and bias + weight @ shift of the layer. Exact in real arithmetic, whatever
the widths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    known_constant,
    module_path,
    shape_of,
    tensor_arg,
)
from mixport.quantize.channels.one_range import ChannelAffine, choose_affine
from mixport.quantize.channels.row_sample import Wanted, sample_rows
from mixport.quantize.graph.marks import short_op
from mixport.quantize.graph.roles import Kind
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision

_ROWS_KEPT = 4096
"""Of each norm's output, drawn over all images: 12 MB at 768 channels."""


@dataclass(frozen=True, kw_only=True)
class _Fed:
    """A normalisation and the linear layers that alone read it."""

    norm: fx.Node
    layers: tuple[fx.Node, ...]


def level_layernorms(
    graph: fx.GraphModule,
    batches: Iterable[Tensor],
    *,
    images: int,
    scheme: Scheme,
    rule: ScaleRule,
    kept: frozenset[fx.Node] = frozenset(),
) -> list[Decision]:
    """Reparameterise every LayerNorm that only linear layers read; the values of the graph stay, but for
    float32 rounding.

    Args:
        graph: canonical float graph with recorded shapes; its constants are replaced, never written to.
        batches: calibration images, float32 [N, 3, H, W]; a few hundred are enough.
        images: how many there are.
        scheme: widths of the layers.
        rule: of the target, for the activation quantiser to come.
        kept: layers whose weights stay as they are.

    Returns:
        one decision a LayerNorm: what was done, or why nothing.
    """
    flow = CodeFlow(graph)
    fed, decisions = _fed(graph, flow)
    fed = [pair for pair in fed if kept.isdisjoint(pair.layers)]
    if not fed:
        return decisions
    seen = sample_rows(
        graph, {pair.norm: Wanted(rows=_ROWS_KEPT, axis=-1) for pair in fed}, batches, images=images
    )
    for pair in fed:
        reads_edge = any(flow.reads_edge(layer, pair.norm, scheme.edge_convention) for layer in pair.layers)
        has_edge_weights = any(layer in flow.weight_edges(scheme.edge_convention) for layer in pair.layers)
        weights = [known_constant(graph, layer.args[1]) for layer in pair.layers]
        affine = choose_affine(
            seen[pair.norm].numpy(),
            torch.cat(weights).numpy(),
            activation_bits=scheme.edge_bits if reads_edge else scheme.activation_bits,
            weight_bits=scheme.edge_bits if has_edge_weights else scheme.weight_bits,
            rule=rule,
        )
        _fold(graph, pair, shift=torch.as_tensor(affine.shift), ratio=torch.as_tensor(affine.ratio))
        decisions.append(_decision(pair, affine))
    graph.recompile()
    return decisions


def _fed(graph: fx.GraphModule, flow: CodeFlow) -> tuple[list[_Fed], list[Decision]]:
    norms = [node for node in flow.nodes if flow.kinds[node] is Kind.NORM]
    fed: list[_Fed] = []
    decisions: list[Decision] = []
    in_order = _reading_channels(graph, norms) if norms else set[fx.Node]()
    for norm in norms:
        readers = tuple(dict.fromkeys(user for user, _ in flow.readers(norm)))
        others = [
            node
            for node in readers
            if flow.kinds[node] is not Kind.LAYER or node.target is not aten.linear.default
        ]
        if others:
            what = "the output" if others[0].op == "output" else short_op(others[0])
            decisions.append(
                _declined(norm, f"{what} reads it too, where only linear layers could take ratios")
            )
        elif not all(layer in in_order and _channels_read(layer) == shape_of(norm)[-1] for layer in readers):
            decisions.append(_declined(norm, "its channels do not all reach the next layer in order"))
        elif readers:
            fed.append(_Fed(norm=norm, layers=readers))
    return fed, decisions


def _channels_read(layer: fx.Node) -> int:
    return shape_of(tensor_arg(layer, 0))[-1]


class _Probe(fx.Interpreter):
    """Lets every norm give the numbers of its channels, and notes which linear layers read 1, 2, ..., C in
    every row.

    Data movement between them may pad, merge axes or reorder: only what arrives counts.
    """

    def __init__(self, graph: fx.GraphModule, norms: Iterable[fx.Node]) -> None:
        super().__init__(graph)
        self.norms = set(norms)
        self.in_order: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.norms:
            return self._numbers(value).expand(value.shape)
        if n.target is aten.linear.default:
            read: Tensor = self.env[tensor_arg(n, 0)]
            if torch.equal(read, self._numbers(read).expand(read.shape)):
                self.in_order.add(n)
        return value

    @staticmethod
    def _numbers(value: Tensor) -> Tensor:
        return torch.arange(1.0, value.shape[-1] + 1)


def _reading_channels(graph: fx.GraphModule, norms: list[fx.Node]) -> set[fx.Node]:
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    probe = _Probe(graph, norms)
    probe.garbage_collect_values = False
    with torch.no_grad():
        probe.run(torch.zeros(shape_of(placeholder)))
    return probe.in_order


def _fold(graph: fx.GraphModule, pair: _Fed, *, shift: Tensor, ratio: Tensor) -> None:
    """New constants, computed in float64: others may read the old ones."""
    norm = pair.norm
    x, axes, weight, bias, *rest = arguments(norm, None, None, after=2)
    gain = torch.ones_like(ratio) if weight is None else known_constant(graph, weight).double()
    offset = torch.zeros_like(ratio) if bias is None else known_constant(graph, bias).double()
    name = module_path(norm) or norm.name
    new_gain = add_constant(graph, (gain / ratio).float(), name=f"{name}_weight", before=norm)
    new_offset = add_constant(graph, ((offset - shift) / ratio).float(), name=f"{name}_bias", before=norm)
    norm.args = (x, axes, new_gain, new_offset, *rest)
    for layer in pair.layers:
        x, weight, bias = arguments(layer, None, after=2)
        exact = known_constant(graph, weight).double()
        offset = exact @ shift + (0.0 if bias is None else known_constant(graph, bias).double())
        name = module_path(layer) or layer.name
        new_weight = add_constant(graph, (exact * ratio).float(), name=f"{name}_weight", before=layer)
        layer.args = (x, new_weight, add_constant(graph, offset.float(), name=f"{name}_bias", before=layer))


def _declined(norm: fx.Node, why: str) -> Decision:
    return Decision(where=module_path(norm) or norm.name, what="channels keep their own ranges", why=why)


def _decision(pair: _Fed, affine: ChannelAffine) -> Decision:
    low, high = float(np.min(affine.ratio)), float(np.max(affine.ratio))
    readers = ", ".join(dict.fromkeys(module_path(layer) or layer.name for layer in pair.layers))
    return Decision(
        where=module_path(pair.norm) or pair.norm.name,
        what=(
            f"channels shifted and divided by {low:.3g} to {high:.3g} (exponent {affine.exponent:g}), "
            f"undone in {readers}"
        ),
        why=(
            f"one scale serves all channels; relative error of the layer's output {affine.before:.2e} "
            f"before, {affine.after:.2e} with it"
        ),
    )
