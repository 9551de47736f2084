"""Another basis for the channels of linear bottlenecks, before they are quantised: fewer of the outputs'
errors for the same codes.

One scale serves all channels, however different they are, and however little some of them matter. Where only
convolutions and adds make and read a tensor (`linear_tensors`), its channels may be mixed by any invertible
matrix A, after their mean is taken off: the convolutions that make it take A, those that read it the inverse.
Exact in real arithmetic, and free at run time. A is the one that makes the noise of the codes smallest as the
outputs see it (`channel_basis`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import add_constant, arguments, known_constant, module_path, tensor_arg
from mixport.quantize.channels.basis import Array, CodedChannels, basis_of, best_metric
from mixport.quantize.channels.bottleneck_tensors import LinearChain, Readings, linear_chains
from mixport.quantize.channels.moments import Moments, channel_moments
from mixport.quantize.channels.one_range import rounded
from mixport.quantize.channels.rotation import Places, learn_rotation
from mixport.quantize.gradients import NotLearnedError
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision

_ROWS = 1 << 14
"""Places of each tensor: a rotation is learned from those of the first images, and bases are compared on the
others.
"""
_DRAWS = 4
"""Rotations tried of each chain; from the best one another is learned."""
_WORTH_IT = 0.95
"""What the noise must fall to."""


def change_bases(
    graph: fx.GraphModule,
    batches: Iterable[Tensor],
    *,
    images: int,
    scheme: Scheme,
    rule: ScaleRule,
    kept: frozenset[fx.Node] = frozenset(),
) -> list[Decision]:
    """Give every linear chain that is read through codes narrower than 8 bits its best basis; the values of
    the graph's outputs stay.

    Args:
        graph: canonical float graph with recorded shapes; its constants are replaced, never written to.
        batches: calibration images, float32 [N, 3, H, W]; a few hundred are enough.
        images: how many there are.
        scheme: widths of the layers.
        rule: of the target, for the activation quantiser to come.
        kept: layers whose weights stay as they are.

    Returns:
        one decision a chain that is changed, and one where no gradient tells what the outputs see.
    """
    chains = [
        chain for chain in linear_chains(CodeFlow(graph), scheme) if any(one.bits < 8 for one in chain.read)
    ]
    chains = [
        chain
        for chain in chains
        if kept.isdisjoint((*chain.producers, *(layer for one in chain.read for layer in one.layers)))
    ]
    if not chains:
        return []
    readers = {node: tuple[fx.Node, ...]() for chain in chains for node in chain.producers}
    readers |= {one.tensor: one.layers for chain in chains for one in chain.read}
    try:
        moments = channel_moments(graph, readers, batches, images=images, rows=_ROWS)
    except NotLearnedError as problem:
        return [Decision(where="linear bottlenecks", what="channels keep their own basis", why=str(problem))]
    decisions: list[Decision] = []
    for chain in chains:
        if not all(moments[one.tensor].finite for one in chain.read):
            continue  # statistics and learning say which tensor it is
        means = _means(chain, moments)
        narrow = [one for one in chain.read if one.bits < 8]
        basis, before, after = _best(chain, narrow, means, moments, rule=rule)
        if after < _WORTH_IT * before:
            _fold(graph, chain, means, basis)
            decisions.append(_decision(chain, before=before, after=after))
    graph.recompile()
    return decisions


def _means(chain: LinearChain, moments: Mapping[fx.Node, Moments]) -> dict[fx.Node, Array]:
    """What is taken off each tensor: each producer's mean, and of a sum both; nothing where a reader pads
    with zeros.
    """
    means = {
        node: np.zeros(chain.channels) if chain.padded else moments[node].mean for node in chain.producers
    }
    for add in chain.adds:
        means[add] = means[tensor_arg(add, 0)] + means[tensor_arg(add, 1)]
    return means


def _best(
    chain: LinearChain,
    narrow: list[Readings],
    means: Mapping[fx.Node, Array],
    moments: Mapping[fx.Node, Moments],
    *,
    rule: ScaleRule,
) -> tuple[Array, float, float]:
    """The best basis found, and the noise of codes in the outputs without it and with it."""
    tensors = [_channels(moments[one.tensor], means[one.tensor]) for one in narrow]
    metric, rng = best_metric(tensors), np.random.default_rng(0)

    centres = [means[one.tensor] for one in narrow]

    def noise(basis: Array, centres: Sequence[Array | float]) -> float:
        return sum(
            _noise(moments[one.tensor], basis, centre, bits=one.bits, rule=rule)
            for one, centre in zip(narrow, centres, strict=True)
        )

    drawn = min(
        (basis_of(metric, tensors, rng) for _ in range(_DRAWS)), key=lambda basis: noise(basis, centres)
    )
    places = [
        _places(moments[one.tensor], drawn, centre, bits=one.bits)
        for one, centre in zip(narrow, centres, strict=True)
    ]
    best = min((drawn, learn_rotation(places) @ drawn), key=lambda basis: noise(basis, centres))
    return best, noise(np.eye(chain.channels), [0.0] * len(narrow)), noise(best, centres)


def _places(found: Moments, basis: Array, mean: Array, *, bits: int) -> Places:
    """The tensor in a basis."""
    inverse = np.linalg.inv(basis)
    learned, judged = (
        torch.as_tensor(((rows.numpy() - mean) @ basis.T).astype(np.float32)) for rows in _halves(found)
    )
    return Places(learned=learned, judged=judged, fisher=inverse.T @ found.fisher @ inverse, bits=bits)


def _halves(found: Moments) -> tuple[Tensor, Tensor]:
    """Places of the first images, and of the others; all twice where there is but one."""
    middle = len(found.rows) // 2
    return (found.rows[:middle], found.rows[middle:]) if middle else (found.rows, found.rows)


def _channels(found: Moments, mean: Array) -> CodedChannels:
    """About what is taken off, which may be 0."""
    rest = found.mean - mean
    covariance = found.square - np.outer(found.mean, found.mean) + np.outer(rest, rest)
    return CodedChannels(covariance=covariance, fisher=found.fisher)


def _noise(found: Moments, basis: Array, mean: Array | float, *, bits: int, rule: ScaleRule) -> float:
    """What the rounding of y = A (x - mean) does to the outputs' log-likelihood, to second order, for one
    place.
    """
    y = ((_halves(found)[1].numpy() - mean) @ basis.T).astype(np.float32)
    wrong = np.linalg.solve(basis, (rounded(y, bits=bits, rule=rule) - y).T.astype(np.float64))
    return float(np.einsum("in,ij,jn->", wrong, found.fisher, wrong)) / (2 * max(len(y), 1))


def _fold(graph: fx.GraphModule, chain: LinearChain, means: Mapping[fx.Node, Array], basis: Array) -> None:
    """New constants, computed in float64: others may read the old ones."""
    mixing, inverse = torch.as_tensor(basis), torch.as_tensor(np.linalg.inv(basis))
    for layer in chain.producers:
        weight, bias = _weights(graph, layer)
        _replace(
            graph,
            layer,
            torch.einsum("oi,i...->o...", mixing, weight),
            mixing @ (bias - torch.as_tensor(means[layer])),
        )
    for one in chain.read:
        for layer in one.layers:
            weight, bias = _weights(graph, layer)
            moved = torch.einsum("oi...,i->o", weight, torch.as_tensor(means[one.tensor]))
            _replace(graph, layer, torch.einsum("oi...,ij->oj...", weight, inverse), bias + moved)


def _weights(graph: fx.GraphModule, layer: fx.Node) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution, float64; zeros without a bias."""
    _, weight, bias, *_ = arguments(layer, None, after=2)
    exact = known_constant(graph, weight).double()
    return exact, exact.new_zeros(len(exact)) if bias is None else known_constant(graph, bias).double()


def _replace(graph: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    x, _, _, *rest = arguments(layer, None, after=2)
    name = module_path(layer) or layer.name
    new_weight = add_constant(graph, weight.float().contiguous(), name=f"{name}_weight", before=layer)
    layer.args = (x, new_weight, add_constant(graph, bias.float(), name=f"{name}_bias", before=layer), *rest)


def _decision(chain: LinearChain, *, before: float, after: float) -> Decision:
    first, *others = (module_path(layer) or layer.name for layer in chain.producers)
    readers = ", ".join(
        dict.fromkeys(module_path(layer) or layer.name for one in chain.read for layer in one.layers)
    )
    what = (
        f"{'channels' if chain.padded else 'means taken off, channels'} mixed by a "
        f"{chain.channels}x{chain.channels} matrix"
    )
    shared = f", shared with {', '.join(others)}" if others else ""
    return Decision(
        where=first,
        what=f"{what}{shared}, undone in {readers}",
        why=(
            f"one scale serves all channels; what codes cost the outputs, {before:.2e} a place before, "
            f"{after:.2e} with it"
        ),
    )
