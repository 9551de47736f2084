"""Channels and branches of very different range that share 8-bit codes: brought to one range before anything
is quantised.

A channel a thousandth as wide as another one of its tensor, or of a tensor that it is concatenated with or
added to, has no codes left. Where a factor for each channel is free (`channel_factors`), the layers and
tables in front divide by it and the layers behind multiply: exact in real arithmetic, and bit for bit in
float32, since all factors are powers of two. Weights behind share a scale along their inputs, so that what
codes gain, weights may lose: how far to go is chosen by the noise of both together, as 8-bit codes would have
it.

Only what is bad is touched: a layer whose output would lose more than 25 dB allow for, and that gains 6 dB or
more. Narrower codes are none of it: 4-bit codes of even channels are noisy too, and what levels them is in
`conv_channels` and `linear_basis`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    groups_of,
    known_constant,
    module_path,
    tensor_arg,
)
from mixport.quantize.channels.factors import FIXED, Factors, Numbers, find_factors
from mixport.quantize.channels.uneven_parts import Part, find_parts, is_link
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.decision import Decision

Array = NDArray[np.float64]

_NOISY = 10.0**-2.5
"""Noise of 8-bit codes in what a layer gives, relative to how much that varies, from which on it is looked
at: 25 dB.
"""
_WORTH_IT = 0.25
"""What the noise must fall to: 6 dB less."""
_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
_FURTHEST = 20
"""Largest exponent of 2 in a factor."""
_LEAST_EXPECTED = 0.25
"""Of the range that a channel's weights let expect, from those of its neighbours: a channel may be silent on
the images at hand alone.
"""
_STEPS, _WEIGHT_STEPS = 255, 127
_TINY = np.finfo(np.float64).tiny


@dataclass(kw_only=True)
class _Seen:
    """What was seen of one tensor, channel by channel: float64 [C] each."""

    low: Array
    high: Array
    total: Array
    square: Array
    count: int = 0

    @property
    def power(self) -> Array:
        """Mean square."""
        return self.square / max(self.count, 1)

    @property
    def variance(self) -> float:
        """About each channel's mean, summed over channels."""
        return float(np.maximum(self.power - (self.total / max(self.count, 1)) ** 2, 0.0).sum())


def level_uneven(graph: fx.GraphModule, batches: Iterable[Tensor], *, narrow: bool = False) -> list[Decision]:
    """Level what 8-bit codes would lose; the values of the graph's outputs stay.

    Args:
        graph: canonical float graph with recorded shapes; its constants are replaced, never written to.
        batches: a few calibration images, float32 [N, 3, H, W].
        narrow: codes have fewer than 8 bits: a single tensor between convolutions is left to `conv_channels`,
            which judges by those.

    Returns:
        one decision a part of the graph that is changed.
    """
    flow = CodeFlow(graph)
    try:
        factors = find_factors(graph, flow)
    except (RuntimeError, IndexError, ValueError) as error:
        why = (
            "the graph does not run on numbers of channels: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        return [Decision(where="model", what="channels of different range are not looked for", why=why)]
    parts = [part for part in find_parts(flow, factors) if not (narrow and is_link(part))]
    if not parts:
        return []
    seen = _look(graph, factors, parts, batches)
    decisions: list[Decision] = []
    for part in parts:
        ones = dict.fromkeys(part.numbers, 1.0)
        before = _noise(graph, part, factors, seen, ones)
        if not before or max(before.values()) < _NOISY:
            continue
        norms = _row_norms(graph, part, factors)
        tried = [_ratios(part, factors, seen, norms, exponent) for exponent in _EXPONENTS]
        noises = [sum(_noise(graph, part, factors, seen, ratios).values()) for ratios in tried]
        best = int(np.argmin(noises))
        if noises[best] < _WORTH_IT * sum(before.values()):
            _fold(graph, factors, tried[best])
            decisions.append(_decision(part, tried[best], before=sum(before.values()), after=noises[best]))
    graph.recompile()
    return decisions


# -- parts ---------------------------------------------------------------------------------------------------


class _Look(fx.Interpreter):
    """Notes ranges and powers of channels."""

    def __init__(
        self, graph: fx.GraphModule, carried: Mapping[fx.Node, int], layers: Iterable[fx.Node]
    ) -> None:
        super().__init__(graph)
        self.carried, self.layers = carried, set(layers)
        self.seen: dict[tuple[fx.Node, str], _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self.layers:
            axis = -1 if n.target is aten.linear.default else 1
            self._note((n, "read"), self.env[tensor_arg(n, 0)], axis)
        value = super().run_node(n)
        if n in self.layers:
            self._note((n, "given"), value, -1 if n.target is aten.linear.default else 1)
        if n in self.carried:
            self._note((n, "carried"), value, self.carried[n])
        return value

    def _note(self, key: tuple[fx.Node, str], value: Tensor, axis: int) -> None:
        rows = value.movedim(axis, 0).reshape(value.shape[axis], -1)
        low, high = (side.double().numpy() for side in torch.aminmax(rows, dim=1))
        found = self.seen.get(key)
        if found is None:
            zeros = np.zeros(len(rows))
            found = self.seen[key] = _Seen(low=zeros, high=zeros, total=zeros, square=zeros)
        found.low, found.high = np.minimum(found.low, low), np.maximum(found.high, high)
        found.total = found.total + rows.sum(1, dtype=torch.float64).numpy()
        found.square = found.square + rows.square().sum(1, dtype=torch.float64).numpy()
        found.count += rows.shape[1]


def _look(
    graph: fx.GraphModule, factors: Factors, parts: Iterable[Part], batches: Iterable[Tensor]
) -> Mapping[tuple[fx.Node, str], _Seen]:
    parts = list(parts)
    carried = {
        tensor: factors.carried[tensor].axis for part in parts for tensors in part.tied for tensor in tensors
    }
    look = _Look(graph, carried, [layer for part in parts for layer in part.layers])
    with torch.no_grad():
        for batch in batches:
            look.run(batch)
    return look.seen


# -- the choice ----------------------------------------------------------------------------------------------


def _row_norms(graph: fx.GraphModule, part: Part, factors: Factors) -> list[tuple[Numbers, Array]]:
    """Factors of each layer's outputs, and the norms of the weights that make them."""
    return [
        (
            numbers,
            np.sqrt(
                np.square(known_constant(graph, layer.args[1]).double().numpy())
                .reshape(len(numbers), -1)
                .sum(1)
            ),
        )
        for layer, numbers in factors.gives.items()
        if not part.numbers.isdisjoint(map(int, numbers))
    ]


def _expect(ranges: dict[int, float], norms: Iterable[tuple[Numbers, Array]]) -> None:
    """Raise ranges that a few images leave at next to nothing to a quarter of what the weights let expect."""
    for numbers, sizes in norms:
        found = np.array([ranges.get(int(number), 0.0) for number in numbers])
        live = (found > 0.0) & (sizes > 0.0)
        if not live.any():
            continue
        expected = sizes * float(np.median(found[live] / sizes[live])) * _LEAST_EXPECTED
        for number, least in zip(map(int, numbers), expected, strict=True):
            if number in ranges:
                ranges[number] = max(ranges[number], float(least))


def _ratios(
    part: Part,
    factors: Factors,
    seen: Mapping[tuple[fx.Node, str], _Seen],
    norms: Iterable[tuple[Numbers, Array]],
    exponent: float,
) -> dict[int, float]:
    """Range of each factor's channels over the widest, or over the widest that is fixed, to a power; rounded
    to powers of two.
    """
    wanted: dict[int, float] = {}
    for tensors in part.tied:
        ranges: dict[int, float] = {}
        for tensor in tensors:
            found = seen[tensor, "carried"]
            for number, width in zip(
                factors.carried[tensor].numbers, np.maximum(found.high, -found.low), strict=True
            ):
                ranges[int(number)] = max(ranges.get(int(number), 0.0), float(width))
        reference = ranges.pop(FIXED, 0.0)
        _expect(ranges, norms)
        reference = reference or max(ranges.values(), default=0.0)
        for number, width in ranges.items():
            if width > 0.0 and reference > 0.0:
                wanted[number] = max(wanted.get(number, 0.0), width / reference)
    powers = {
        number: np.clip(np.rint(exponent * np.log2(ratio)), -_FURTHEST, _FURTHEST)
        for number, ratio in wanted.items()
    }
    return dict.fromkeys(part.numbers, 1.0) | {number: float(2.0**power) for number, power in powers.items()}


def _noise(
    graph: fx.GraphModule,
    part: Part,
    factors: Factors,
    seen: Mapping[tuple[fx.Node, str], _Seen],
    ratios: Mapping[int, float],
) -> dict[fx.Node, float]:
    """Noise in what each layer gives, relative to how much that varies; layers whose result does not vary are
    left out.
    """
    steps = [_step(tensors, factors, seen, ratios) for tensors in part.tied]
    noise: dict[fx.Node, float] = {}
    for layer, place in part.layers.items():
        signal = seen[layer, "given"].variance
        if not np.isfinite(signal) or signal <= 0.0:
            continue
        power, ratio = seen[layer, "read"].power, _of(ratios, factors.reads[layer])
        groups = groups_of(layer) if layer.target is not aten.linear.default else 1
        weight = known_constant(graph, layer.args[1]).double().numpy()
        by_group = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        squares = np.square(by_group).sum((1, 3)).reshape(-1)
        codes = np.minimum((steps[place] * ratio) ** 2 / 12, power)
        scaled = np.abs(by_group) * ratio.reshape(groups, 1, -1, 1)
        weight_steps = scaled.max((2, 3), initial=0.0) / _WEIGHT_STEPS
        behind = (power / ratio**2).reshape(groups, -1).sum(1) * by_group.shape[3]
        rounding = (np.square(weight_steps).sum(1) / 12 * behind).sum()
        noise[layer] = float((codes * squares).sum() + rounding) / max(signal, _TINY)
    return noise


def _step(
    tensors: Iterable[fx.Node],
    factors: Factors,
    seen: Mapping[tuple[fx.Node, str], _Seen],
    ratios: Mapping[int, float],
) -> float:
    """Of 8-bit codes that all of these tensors share."""
    low = high = 0.0
    for tensor in tensors:
        found, ratio = seen[tensor, "carried"], _of(ratios, factors.carried[tensor].numbers)
        low, high = min(low, float((found.low / ratio).min())), max(high, float((found.high / ratio).max()))
    return (high - low) / _STEPS


def _of(ratios: Mapping[int, float], numbers: Numbers) -> Array:
    return np.array([ratios.get(int(number), 1.0) for number in numbers])


# -- what is changed -----------------------------------------------------------------------------------------


def _fold(graph: fx.GraphModule, factors: Factors, ratios: Mapping[int, float]) -> None:
    """New constants; others may read the old ones."""
    for layer, numbers in factors.gives.items():
        given = torch.as_tensor(_of(ratios, numbers))
        read = torch.as_tensor(_of(ratios, factors.reads[layer]))
        if bool((given == 1.0).all()) and bool((read == 1.0).all()):
            continue
        x, weight, bias, *rest = arguments(layer, None, after=2)
        exact, name = known_constant(graph, weight).double(), module_path(layer) or layer.name
        groups = groups_of(layer) if layer.target is not aten.linear.default else 1
        taps = [1] * (exact.dim() - 2)
        scaled = exact.reshape(groups, -1, *exact.shape[1:]) * read.view(groups, 1, -1, *taps)
        scaled = scaled.reshape(exact.shape) / given.view(-1, 1, *taps)
        new_weight = add_constant(graph, scaled.float(), name=f"{name}_weight", before=layer)
        new_bias = bias
        if bias is not None:
            new_bias = add_constant(
                graph,
                (known_constant(graph, bias).double() / given).float(),
                name=f"{name}_bias",
                before=layer,
            )
        layer.args = (x, new_weight, new_bias, *rest)
    for table, number in factors.tables.items():
        ratio = ratios.get(number, 1.0)
        if ratio != 1.0:
            readers = list(table.users)
            following = next(iter(table.users))
            scaled_table = call(graph, aten.mul.Tensor, table, 1.0 / ratio, before=following, like=table)
            scaled_table.meta.update(
                {key: table.meta[key] for key in ("shape", "is_float", "val") if key in table.meta}
            )
            for reader in readers:
                reader.replace_input_with(table, scaled_table)


def _decision(part: Part, ratios: Mapping[int, float], *, before: float, after: float) -> Decision:
    tensors = ", ".join(
        dict.fromkeys(module_path(tensor) or tensor.name for tensors in part.tied for tensor in tensors)
    )
    readers = ", ".join(dict.fromkeys(module_path(layer) or layer.name for layer in part.layers))
    return Decision(
        where=tensors,
        what=(
            f"channels divided by {min(ratios.values()):.3g} to {max(ratios.values()):.3g}, undone in "
            f"{readers}"
        ),
        why=(
            f"they share 8-bit codes; noise in what the layers behind give {before:.2e} of what varies "
            f"before, {after:.2e} with it"
        ),
    )
