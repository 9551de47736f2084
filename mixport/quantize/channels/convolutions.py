"""Cross-layer equalisation (arXiv 1906.04721): the channels between two convolutions brought to similar
ranges before they are quantised.

One scale serves all channels of an activation, and channels that stay small use few of its codes. Relu(x / r)
= Relu(x) / r for positive r: the convolution in front divides its output channels by r, those behind multiply
their input channels. Weights in front have a scale for each output channel and lose nothing; behind a
depthwise convolution neither do those, so that its input has in effect a scale for each channel. Other
weights share a scale along their input channels and lose precision: how far to go is chosen by the error of
the layer behind. Exact in real arithmetic: a Relu6 becomes a clamp with a bound for each channel, none below
6, which the quantiser's own saturation makes redundant.

Unlike the publication, a channel's range is the one that a quantiser of its own would choose, the one of
least squared error: under a Relu6 every channel reaches 6 on some image, so that largest values say nothing,
and quantiles cut channels that fire seldom.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    groups_of,
    known_constant,
    module_path,
    shape_of,
    tensor_arg,
)
from mixport.quantize.channels.errors_of_ratios import Reader, learned_error, nearest_error, rows_wanted
from mixport.quantize.channels.row_sample import Wanted, sample_rows
from mixport.quantize.graph.marks import CHANNEL_BOUNDS
from mixport.quantize.graph.roles import Kind, clamp_bounds
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision

Array = NDArray[np.float64]

_VALUES_KEPT = 1 << 21
"""Of each tensor, drawn over all images, for the ranges of its channels: 8 MB."""
_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
_SHRINKS = np.geomspace(1.0, 1 / 16, 24)
_SMALLEST_RATIO = 1.0 / 16.0
"""A channel that is almost silent needs no more room than this gives."""
_LEAST_WEIGHT_BITS = 4
"""Weights rounded to nearest are compared at no fewer bits: at 2 nothing of them is left to compare."""
_WORTH_IT, _WORTH_IT_LEARNED = 0.8, 0.9
"""What the error must fall to where weights pay; the second for learned 1 x 1 weights, whose error is the
most like what is judged.
"""
_PADS = {aten.constant_pad_nd.default, aten.pad.default}
_SPATIAL_MOVES = {*_PADS, aten.max_pool2d.default}


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A tensor between convolutions.

    Attributes:
        producer: gives it.
        tensor: it, behind the producer's clamp where there is one.
        bounds: of that clamp; None without one.
        layers: convolutions that alone read it.
        bits: width of its codes for its narrowest reader.
    """

    producer: fx.Node
    tensor: fx.Node
    bounds: tuple[float, float | None] | None
    layers: tuple[fx.Node, ...]
    bits: int


def level_convolutions(
    graph: fx.GraphModule,
    batches: Iterable[Tensor],
    *,
    images: int,
    scheme: Scheme,
    rule: ScaleRule,
    learned: bool = False,
    kept: frozenset[fx.Node] = frozenset(),
) -> list[Decision]:
    """Equalise every tensor with codes narrower than 8 bits that goes from one convolution to others and
    nowhere else.

    Args:
        graph: canonical float graph with recorded shapes; its constants are replaced, never written to.
        batches: calibration images, float32 [N, 3, H, W]; a few hundred are enough.
        images: how many there are.
        scheme: widths of the layers.
        rule: of the target, for the activation quantiser to come.
        learned: rounding of the weights will be learned: errors are those of codes of least squared error,
            not of the nearest ones.
        kept: layers whose weights stay as they are.

    Returns:
        one decision a tensor that is changed.
    """
    flow = CodeFlow(graph)
    links = [
        link
        for link in _links(flow, scheme)
        if link.bits < 8 and kept.isdisjoint((link.producer, *link.layers))
    ]
    if not links:
        return []
    decisions: list[Decision] = []
    judge = learned_error if learned else nearest_error
    wanted = {
        link.tensor: Wanted(
            rows=rows_wanted(shape_of(link.tensor)[1], values=_VALUES_KEPT, learned=learned), axis=1
        )
        for link in links
    }
    seen = sample_rows(graph, wanted, batches, images=images)
    for link in links:
        rows = seen.pop(link.tensor)
        full = channel_ratios(rows, bits=link.bits, signed=link.bounds is None)
        ratios = [np.ones_like(full), *(full**exponent for exponent in _EXPONENTS)]
        readers = [_reader(layer, graph, flow, scheme, learned=learned) for layer in link.layers]
        errors = [
            judge(rows, ratio, readers, bits=link.bits, bounds=link.bounds, rule=rule) for ratio in ratios
        ]
        best = int(np.argmin(errors))
        if errors[best] < errors[0] * _worth_it(graph, link, learned=learned):
            _fold(graph, link, torch.as_tensor(ratios[best]))
            decisions.append(_decision(link, ratios[best], before=errors[0], after=errors[best]))
    graph.recompile()
    return decisions


def channel_ratios(rows: Tensor, *, bits: int, signed: bool) -> Array:
    """Range of each channel's own best quantiser over the widest one's, float64 [C] in [1/16, 1]; 1 where a
    channel is always zero.

    Args:
        rows: float32 [N, C].
        bits: width of the codes.
        signed: codes lie on both sides of zero.
    """
    top = rows.abs().amax(0)
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    best, best_error = top.clone(), torch.full_like(top, torch.inf)
    for shrink in _SHRINKS:
        scale = (top * float(shrink) / steps).clamp_min(torch.finfo(torch.float32).tiny)
        codes = torch.round(rows / scale).clamp_(-steps if signed else 0, steps)
        error = (codes * scale - rows).square().sum(0)
        better = error < best_error
        best, best_error = (
            torch.where(better, top * float(shrink), best),
            torch.where(better, error, best_error),
        )
    ranges = best.double().numpy()
    ratios = np.clip(ranges / max(ranges.max(), np.finfo(np.float64).tiny), _SMALLEST_RATIO, 1.0)
    return np.where(ranges > 0, ratios, 1.0)


def _links(flow: CodeFlow, scheme: Scheme) -> Iterable[_Link]:
    for node in flow.nodes:
        if flow.kinds[node] is not Kind.LAYER or node.target is not aten.conv2d.default:
            continue
        tensor = flow.carrier_tensor(node)
        readers = list(flow.readers(tensor))
        clear = all(
            user.target is aten.conv2d.default
            and flow.kinds[user] is Kind.LAYER
            and _moved_in_space(operand, tensor)
            for user, operand in readers
        )
        if readers and clear:
            convention = scheme.edge_convention
            yield _Link(
                producer=node,
                tensor=tensor,
                bounds=clamp_bounds(tensor) if tensor is not node else None,
                layers=tuple(dict.fromkeys(user for user, _ in readers)),
                bits=min(
                    scheme.edge_bits if flow.reads_edge(user, tensor, convention) else scheme.activation_bits
                    for user, _ in readers
                ),
            )


def _reader(
    layer: fx.Node, graph: fx.GraphModule, flow: CodeFlow, scheme: Scheme, *, learned: bool
) -> Reader:
    bits = scheme.edge_bits if layer in flow.weight_edges(scheme.edge_convention) else scheme.weight_bits
    weight = known_constant(graph, layer.args[1])
    return Reader.of(weight, groups=groups_of(layer), bits=bits if learned else max(bits, _LEAST_WEIGHT_BITS))


def _worth_it(graph: fx.GraphModule, link: _Link, *, learned: bool) -> float:
    """What the error must fall to."""
    shapes = [known_constant(graph, layer.args[1]).shape for layer in link.layers]
    if all(inputs == 1 for _, inputs, *_ in shapes):
        return 1.0  # every weight that reads a channel has a scale of its own: depthwise readers
    # Taps are judged as if independent: ResNet-20 lost by what seemed worth 3 to 6 %
    # (docs/experiments/reconstruction.md).
    return _WORTH_IT_LEARNED if learned and all(math.prod(taps) == 1 for _, _, *taps in shapes) else _WORTH_IT


def _moved_in_space(operand: fx.Node, tensor: fx.Node) -> bool:
    """True where only pads and maxima over places lie between, which leave channels and positive factors
    alone.
    """
    while operand is not tensor:
        if operand.target not in _SPATIAL_MOVES:
            return False
        if operand.target in _PADS and len(operand.args[1]) > 4:  # type: ignore[arg-type]
            return False
        operand = tensor_arg(operand, 0)
    return True


def _fold(graph: fx.GraphModule, link: _Link, ratio: Tensor) -> None:
    """New constants, computed in float64: others may read the old ones."""
    x, weight, bias, *rest = arguments(link.producer, None, after=2)
    name = module_path(link.producer) or link.producer.name
    smaller = known_constant(graph, weight).double() / ratio.view(-1, 1, 1, 1)
    new_weight = add_constant(graph, smaller.float(), name=f"{name}_weight", before=link.producer)
    new_bias = bias
    if bias is not None:
        new_bias = add_constant(
            graph,
            (known_constant(graph, bias).double() / ratio).float(),
            name=f"{name}_bias",
            before=link.producer,
        )
    link.producer.args = (x, new_weight, new_bias, *rest)
    for layer in link.layers:
        exact = known_constant(graph, layer.args[1]).double()
        groups = groups_of(layer)
        by_group = exact.reshape(groups, -1, *exact.shape[1:]) * ratio.view(groups, 1, -1, 1, 1)
        layer_name = module_path(layer) or layer.name
        new_weight = add_constant(
            graph, by_group.reshape(exact.shape).float(), name=f"{layer_name}_weight", before=layer
        )
        layer.args = (layer.args[0], new_weight, *layer.args[2:])
    if link.bounds is not None and link.bounds[1] is not None:
        clamp, upper = link.tensor, link.bounds[1]
        lowest = add_constant(graph, torch.zeros(1), name=f"{name}_zero", before=clamp)
        bound = add_constant(
            graph, (upper / ratio).float().view(-1, 1, 1), name=f"{name}_upper", before=clamp
        )
        clamp.target, clamp.args, clamp.kwargs = aten.clamp.Tensor, (link.producer, lowest, bound), {}
        clamp.meta[CHANNEL_BOUNDS] = (0.0, upper)


def _decision(link: _Link, ratio: Array, *, before: float, after: float) -> Decision:
    readers = ", ".join(dict.fromkeys(module_path(layer) or layer.name for layer in link.layers))
    return Decision(
        where=module_path(link.producer) or link.producer.name,
        what=f"outputs divided by {float(ratio.min()):.3g} to {float(ratio.max()):.3g}, undone in {readers}",
        why=(
            f"one scale serves all channels; relative error of what reads them {before:.2e} before, "
            f"{after:.2e} with it"
        ),
    )
