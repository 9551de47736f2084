"""The prepared graph with noise in the place of rounding, where a width is learned: weights, intervals and
widths are parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.programs.fx_graph import shape_of
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.reconstruction.steps import FakeQuantise
from mixport.quantize.prepared import Prepared
from mixport.quantize.sites.planner import SitePlan
from mixport.train.network.block_distance import Watch
from mixport.train.network.centres import set_centres
from mixport.train.network.layers import TrainedLayers
from mixport.train.network.quantised import code_range, learned_sites
from mixport.train.network.weight_quantiser import QuantisedWeight
from mixport.train.network.whole import WholeGraph
from mixport.train.nipq.noise import NoiseKind, NoisePool, error_quantiles
from mixport.train.nipq.proxy import channel_noise_proxy, noise_proxy
from mixport.train.nipq.widths import LearnedWidths

_LEAST_FACTOR, _LARGEST_FACTOR = 1 / 16, 16.0
"""How far an interval may go from its first length."""
_REFRESH = 16
"""Steps between two histograms of the same tensor: the distribution of rounding errors moves slowly."""


class NoisyNetwork(nn.Module):
    """Sites and layers whose width is learned behind their noise proxies, all others behind their real
    quantisers; an `execute.Quantised`.

    Noise is there for the width's sake: where that is fixed, rounding itself is the better teacher.

    Args:
        prepared: graph and sites; compute inputs have sites of their own.
        params: of every site, calibrated.
        integers: of every layer, where training starts; see `TrainedLayers.start_at`.
        activation_bits: first width of each free site, in the order of `free_sites`.
        weight_bits: first width of each layer, in graph order.
        allowed: (weight bits, activation bits) of the target.
        noise: kind.
        learn: whether widths of (weights, activations) move, or stay as they start.
        device: where it runs.

    Attributes:
        widths: of layers.
        site_widths: of free sites.
        free_sites: names of the sites whose width is learned, in graph order.
    """

    held: Tensor

    def __init__(
        self,
        prepared: Prepared,
        params: Mapping[str, QuantParams],
        integers: Mapping[fx.Node, LayerIntegers],
        *,
        activation_bits: Sequence[float],
        weight_bits: Sequence[float],
        allowed: tuple[Sequence[int], Sequence[int]],
        noise: NoiseKind,
        learn: tuple[bool, bool] = (True, True),
        device: torch.device,
    ) -> None:
        super().__init__()
        self.prepared, self.device, self.noise = prepared, device, noise
        self.layers = TrainedLayers(prepared, device=device)
        self._params = dict(params)
        self.layers.start_at(integers)
        self.free_sites = free_sites(prepared)
        self._place = {name: number for number, name in enumerate(self.free_sites)}
        fixed = [width.fixed or not learn[0] for width in self.layers.widths]
        start = [
            float(width.bits) if width.fixed else bits
            for width, bits in zip(self.layers.widths, weight_bits, strict=True)
        ]
        self.widths = LearnedWidths(start, allowed=allowed[0], fixed=fixed).to(device)
        self.site_widths = LearnedWidths(
            activation_bits, allowed=allowed[1], fixed=[not learn[1]] * len(self.free_sites)
        ).to(device)
        self.bound = nn.ParameterList(
            nn.Parameter(
                torch.as_tensor(integers[node].scales, device=device) * code_range(width.bits)[1],
                requires_grad=not width.fixed,
            )
            for node, width in zip(self.layers.nodes, self.layers.widths, strict=True)
        )
        spans = [params[name] for name in self.free_sites]
        self.interval = nn.ParameterList(
            nn.Parameter(torch.tensor(one.scale * (one.qmax - one.qmin), device=device)) for one in spans
        )
        self.below = [(one.zero_point - one.qmin) / (one.qmax - one.qmin) for one in spans]
        self._first = [value.detach().clone() for value in (*self.bound, *self.interval)]
        self.register_buffer("held", torch.zeros((), dtype=torch.int64, device=device))
        self._fixed_steps = {name: torch.tensor(one.scale, device=device) for name, one in params.items()}
        self._graph = WholeGraph(prepared, device=device)
        tensors = {site.name: site.tensor for site in prepared.plan.sites}
        sizes = [math.prod(shape_of(tensors[name])) for name in self.free_sites]
        # Elements of one image's largest tensor behind a proxy; weights take a window of the same noise.
        self.largest = max(
            *(size // prepared.captured.example_batch for size in sizes),
            *(weight.numel() for weight in self.layers.weight),
            1,
        )
        self._pool: NoisePool | None = None
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._quantiles: dict[str, tuple[int, Tensor]] = {}
        self._steps = 0

    def draw(self, generator: torch.Generator, *, largest: int) -> None:
        """Start a stretch of training with noise of its own: an epoch."""
        self._pool = NoisePool(largest=largest, generator=generator, device=self.device)
        self._quantiles, self._steps = {}, 0

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        watch: Watch = MappingProxyType({}),
    ) -> Tensor:
        """Outputs [N, ...] for preprocessed images float32 [N, C, H, W].

        Args:
            x: images.
            generator: of the stochastic widths; None runs every site behind its real quantiser, at the
                nearest width.
            watch: see `Executor.run`.
        """
        if generator is None:
            self._drawn = None
        else:
            self._drawn = (self.widths.sampled(generator), self.site_widths.sampled(generator))
            self._steps += 1
        return self._graph.run(x, quantised=self, watch=watch)

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        """See execute.Quantised."""
        number = self._place.get(site.name)
        if number is None:
            params = self._params[site.name]
            low, high = params.qmin - params.zero_point, params.qmax - params.zero_point
            return FakeQuantise.apply(value, self._fixed_steps[site.name], low, high, None)
        interval, below = self.interval[number], self.below[number]
        if self._drawn is None or bool(self.site_widths.fixed[number]):
            levels = steps_of(round(self.site_widths.values()[number]))
            zero = round(below * levels)
            return FakeQuantise.apply(value, interval / levels, -zero, levels - zero, None)
        step = interval / (torch.exp2(self._drawn[1][number]) - 1.0)
        low, high = -below * interval, (1.0 - below) * interval
        noise = self._noise(site.name, value, low, high, step)
        return noise_proxy(value, interval, step, noise, below=below)

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        """See execute.Quantised."""
        number = self.layers.number(layer)
        weight = self._weight(number)
        return weight, self.layers.bias_of(number, weight)

    def centre(self, batches: Iterable[Tensor], *, corrected: bool = True) -> None:
        """Let biases follow weights; see mixport.train.network.centres.

        Args:
            batches: images.
            corrected: as in `QuantisedNetwork.centre`; layers behind noise always are.
        """

        def effective(number: int) -> Tensor:
            kept = bool(self.widths.fixed[number]) and not corrected
            return self._weight(number).detach() if kept else self.layers.float_weight(number)

        set_centres(self.layers, self._graph, batches, effective=effective)

    def integers(self, bits: Sequence[int]) -> dict[fx.Node, LayerIntegers]:
        """Codes within the learned bounds at whole widths, and biases that keep the mean of each output.

        Args:
            bits: of each layer, in graph order.
        """
        found: dict[fx.Node, LayerIntegers] = {}
        for number, node in enumerate(self.layers.nodes):
            low, high = code_range(bits[number])
            scale = (self.bound[number] / high).detach()
            wide = scale.view(-1, *[1] * (self.layers.weight[number].dim() - 1))
            codes = torch.round(self.layers.weight[number].detach() / wide).clamp(low, high)
            bias = self.layers.bias_of(number, codes * wide)
            found[node] = LayerIntegers(
                scales=scale.cpu().numpy(),
                codes=codes.to(torch.int8).cpu().numpy(),
                bias=None if bias is None else bias.detach().cpu().numpy(),
            )
        return found

    def _weight(self, number: int) -> Tensor:
        weight, bound, width = self.layers.weight[number], self.bound[number], self.layers.widths[number]
        if self._drawn is None or bool(self.widths.fixed[number]):
            low, high = code_range(round(self.widths.values()[number]))
            return QuantisedWeight.apply(weight, bound / high, low, high)
        step = bound / (torch.exp2(self._drawn[0][number] - 1.0) - 1.0)
        wide = (-1, *[1] * (weight.dim() - 1))
        # A site has the name of the layer that it is made by: their errors are kept apart.
        name = f"weight/{width.name}"
        noise = self._noise(name, weight, -bound.view(wide), bound.view(wide), step.view(wide))
        return channel_noise_proxy(weight, bound, step, noise)

    def hold(self) -> None:
        """Bring widths and intervals that left their range back to its end, and count them; after a step."""
        self.widths.hold()
        self.site_widths.hold()
        with torch.no_grad():
            for value, first in zip((*self.bound, *self.interval), self._first, strict=True):
                inside = torch.minimum(torch.maximum(value, first * _LEAST_FACTOR), first * _LARGEST_FACTOR)
                self.held += (inside != value).sum()
                value.copy_(inside)

    def _noise(self, name: str, value: Tensor, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
        pool = self._pool
        if pool is None:
            raise RuntimeError("draw() comes before a noisy pass")
        if self.noise == "uniform":
            return pool.uniform(value)
        made, quantiles = self._quantiles.get(name, (-_REFRESH, None))
        if quantiles is None or self._steps - made >= _REFRESH:
            quantiles = error_quantiles(value.detach(), low=low, high=high, step=step)
            self._quantiles[name] = (self._steps, quantiles)
        return pool.drawn(value, quantiles)


def steps_of(bits: int) -> int:
    """Steps that the interval of a free site has at a whole width: `prepare` lets narrow codes start at 0."""
    return 2**bits - 1


def free_sites(prepared: Prepared) -> tuple[str, ...]:
    """Sites whose width and interval are learned: compute inputs with a site of their own, but those of edge
    layers.
    """
    moves, edge = learned_sites(prepared.plan), prepared.scheme.edge_bits
    wanted = prepared.scheme.activation_bits
    return tuple(
        site.name
        for site in prepared.plan.sites
        if site.name in moves and site.bits == wanted and (wanted != edge or not site.is_output)
    )


def tensor_names(prepared: Prepared) -> dict[str, str]:
    """Tensor whose codes each site holds, by the name of its first site: the key of a width table."""
    return {site.name: site.base or site.name for site in prepared.plan.sites}
