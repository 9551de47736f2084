"""Weights and biases of a prepared graph's layers as parameters, in graph order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from mixport.model.programs.fx_graph import groups_of
from mixport.quantize.integers.nearest import LayerIntegers, float_weights
from mixport.quantize.prepared import Prepared
from mixport.quantize.sites.widths import LayerWidth

_SETTLED = 0.45
"""How far from its code a weight may start, in steps."""


class TrainedLayers(nn.Module):
    """Float weights and biases, one of each a layer; a layer without bias has an empty one that is not used.

    Two layers that share a weight in the model have one each here, since each ships integers of its own.

    Attributes:
        weight: float32 [O, ...] a layer.
        bias: float32 [O] or [0] a layer, of centred inputs.
        centre: float32, shape of the weight: mean of the input that each weight multiplies; 0 before
            `set_centres`.
        nodes: layers of the graph.
        widths: of these layers.
    """

    def __init__(self, prepared: Prepared, *, device: torch.device) -> None:
        super().__init__()
        self.nodes: tuple[fx.Node, ...] = tuple(prepared.widths)
        self.widths: tuple[LayerWidth, ...] = tuple(prepared.widths.values())
        self.groups = tuple(groups_of(node) for node in self.nodes)
        found = [float_weights(prepared.graph, node) for node in self.nodes]
        self._float = [torch.tensor(weight) for weight, _ in found]
        self.weight = nn.ParameterList(
            nn.Parameter(torch.tensor(weight, device=device)) for weight, _ in found
        )
        self.bias = nn.ParameterList(
            nn.Parameter(torch.tensor([] if bias is None else bias, device=device, dtype=torch.float32))
            for _, bias in found
        )
        self.centre = nn.ParameterList(
            nn.Parameter(torch.zeros_like(weight), requires_grad=False) for weight in self.weight
        )
        self._number = {node: number for number, node in enumerate(self.nodes)}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers, as in the manifest."""
        return tuple(width.name for width in self.widths)

    def float_weight(self, number: int) -> Tensor:
        """Weight of a layer in the graph, float32 [O, ...]."""
        return self._float[number].to(self.weight[number].device)

    def number(self, node: fx.Node) -> int:
        """Position of a layer."""
        return self._number[node]

    def bias_of(self, number: int, weight: Tensor | None = None) -> Tensor | None:
        """Bias of a layer, None where it has none.

        Args:
            number: of the layer.
            weight: float32 [O, ...] that the layer uses now: gives the bias of inputs as they are; None gives
                the one of centred inputs.
        """
        bias = self.bias[number]
        if not bias.numel():
            return None
        return bias if weight is None else bias - (weight * self.centre[number]).flatten(1).sum(1)

    def start_at(self, integers: Mapping[fx.Node, LayerIntegers]) -> None:
        """Weights and biases of these integers, layer by layer: a weight keeps its float value where its code
        is the nearest one, and comes within the code's step where it is not, so that a gradient reaches it.
        """
        with torch.no_grad():
            for number, node in enumerate(self.nodes):
                one, weight = integers[node], self.weight[number]
                scale = torch.as_tensor(one.scales, device=weight.device).view(-1, *[1] * (weight.dim() - 1))
                codes = torch.as_tensor(one.codes, dtype=torch.float32, device=weight.device)
                weight.copy_(scale * (codes + (weight / scale - codes).clamp(-_SETTLED, _SETTLED)))
                if one.bias is not None:
                    self.bias[number].copy_(torch.as_tensor(one.bias))

    def give(self) -> dict[str, Tensor]:
        """Float weights, and biases of inputs as they are: `weight/NAME` and `bias/NAME`."""
        found: dict[str, Tensor] = {}
        for number, name in enumerate(self.names):
            weight = self.weight[number].detach()
            bias = self.bias_of(number, weight)
            found[f"weight/{name}"] = weight.clone()
            found[f"bias/{name}"] = self.bias[number].detach() if bias is None else bias.detach().clone()
        return found
