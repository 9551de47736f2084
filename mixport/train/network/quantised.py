"""The prepared graph with real quantisers: what ships, with weights, scales and steps as parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn

from mixport.arithmetic.dtypes import IntType
from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.nearest import LayerIntegers, read_params, read_site
from mixport.quantize.learn.reconstruction.layer_values import RoundedBias
from mixport.quantize.learn.reconstruction.steps import FakeQuantise
from mixport.quantize.prepared import Prepared
from mixport.quantize.sites.planner import QuantizationPlan, SitePlan
from mixport.train.network.block_distance import Watch
from mixport.train.network.centres import set_centres
from mixport.train.network.layers import TrainedLayers
from mixport.train.network.pair_limits import pair_limit_of
from mixport.train.network.weight_quantiser import QuantisedWeight
from mixport.train.network.whole import WholeGraph

_LEAST_FACTOR, _LARGEST_FACTOR = 1 / 16, 16.0
"""How far a scale or a step may go from its first value: beyond, an interval has collapsed or ran away."""


class QuantisedNetwork(nn.Module):
    """Every site behind its real quantiser, straight through (LSQ); an `execute.Quantised`.

    Steps of compute inputs and scales of weights are learned where the target takes any scale. Carriers keep
    their calibrated parameters: their scales are tied, so that adds stay exact.

    Args:
        prepared: graph, sites and widths that ship.
        params: of every site.
        integers: of every layer, where training starts; see `TrainedLayers.start_at`.
        device: where it runs.
    """

    held: Tensor

    def __init__(
        self,
        prepared: Prepared,
        params: Mapping[str, QuantParams],
        integers: Mapping[fx.Node, LayerIntegers],
        *,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.prepared, self.device = prepared, device
        self._params = dict(params)
        self.layers = TrainedLayers(prepared, device=device)
        free = prepared.rule.grid.moves_freely
        self.scale = nn.ParameterList(
            nn.Parameter(torch.tensor(integers[node].scales, device=device), requires_grad=free)
            for node in self.layers.nodes
        )
        self.layers.start_at(integers)
        moves = learned_sites(prepared.plan) if free else frozenset[str]()
        self._sites = [site.name for site in prepared.plan.sites]
        self.step = nn.ParameterList(
            nn.Parameter(
                torch.tensor(params[name].scale, dtype=torch.float32, device=device),
                requires_grad=name in moves,
            )
            for name in self._sites
        )
        self._place = {name: number for number, name in enumerate(self._sites)}
        self._first_scale = [scale.detach().clone() for scale in self.scale]
        self._first_step = [step.detach().clone() for step in self.step]
        self.register_buffer("held", torch.zeros(2, dtype=torch.int64, device=device))
        self._reads = [self._place[read_site(prepared.plan, node).name] for node in self.layers.nodes]
        self._pairs = [
            pair_limit_of(
                tuple(self.layers.weight[number].shape),
                largest_weight=max(map(abs, code_range(width.bits))),
                groups=self.layers.groups[number],
                x=read_params(prepared.plan, node, params),
                limit=prepared.target.accumulator.pair_limit,
            )
            for number, (node, width) in enumerate(zip(self.layers.nodes, self.layers.widths, strict=True))
        ]
        self._graph = WholeGraph(prepared, device=device)

    def forward(self, x: Tensor, *, watch: Watch = MappingProxyType({})) -> Tensor:
        """Outputs [N, ...] for preprocessed images float32 [N, C, H, W].

        Args:
            x: images.
            watch: see `Executor.run`.
        """
        return self._graph.run(x, quantised=self, watch=watch)

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        """See execute.Quantised."""
        params = self._params[site.name]
        return FakeQuantise.apply(
            value,
            self.step[self._place[site.name]],
            params.qmin - params.zero_point,
            params.qmax - params.zero_point,
            None,
        )

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        """See execute.Quantised; the bias is the one that ships with steps and scales as they are now."""
        number = self.layers.number(layer)
        weight = self.shipped_weight(number)
        bias = self.layers.bias_of(number, weight)
        if bias is None:
            return weight, None
        unit = (self.step[self._reads[number]] * self.scale[number]).detach()
        return weight, RoundedBias.apply(bias, unit)

    def shipped_weight(self, number: int) -> Tensor:
        """Weight of a layer as the float values of its codes, float32 [O, ...]."""
        low, high = code_range(self.layers.widths[number].bits)
        return QuantisedWeight.apply(self.layers.weight[number], self.scale[number], low, high)

    def centre(self, batches: Iterable[Tensor], *, corrected: bool) -> None:
        """Let biases follow weights; see mixport.train.network.centres.

        Args:
            batches: images.
            corrected: biases are those of the graph's float weights, so that each layer's mean output becomes
                the float one; False leaves outputs as they are, where biases belong to these codes.
        """
        effective = self.layers.float_weight if corrected else self.shipped_weight
        set_centres(self.layers, self._graph, batches, effective=effective)

    def hold(self) -> None:
        """Bring scales and steps that ran away back to their limits, and count them; keep pairs of weights
        within their bound. After a step.
        """
        with torch.no_grad():
            for kind, (now, first) in enumerate(
                ((self.scale, self._first_scale), (self.step, self._first_step))
            ):
                for value, start in zip(now, first, strict=True):
                    if value.requires_grad:
                        inside = torch.minimum(
                            torch.maximum(value, start * _LEAST_FACTOR), start * _LARGEST_FACTOR
                        )
                        self.held[kind] += (inside != value).sum()
                        value.copy_(inside)
            for number, limit in enumerate(self._pairs):
                if limit is not None:
                    weight = self.layers.weight[number]
                    weight.copy_(limit.hold(weight, self.scale[number]))

    def params(self) -> dict[str, QuantParams]:
        """Parameters of every site with the steps as they are now."""
        return {
            name: replace(self._params[name], scale=float(self.step[self._place[name]].detach()))
            for name in self._sites
        }


def learned_sites(plan: QuantizationPlan) -> frozenset[str]:
    """Sites whose step may be learned: compute inputs that no other tensor's scale is tied to."""
    tied = {name for group in plan.groups for name in group.members}
    return frozenset(
        site.name
        for site in plan.sites
        if site.role == "compute" and site.name not in tied and not site.chain and site.fixed is None
    )


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a weight of this width."""
    kind = IntType(bits=bits, signed=True, narrow=bits == 8)
    return kind.qmin, kind.qmax
