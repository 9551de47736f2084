"""Quantisers and weights of one unit while it is reconstructed: some fixed, some learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.reconstruction.layer_values import LayerValues
from mixport.quantize.learn.reconstruction.steps import FakeQuantise, MaskPool
from mixport.quantize.sites.planner import SitePlan

LEAST_FACTOR, LARGEST_FACTOR = 0.25, 4.0
"""How far a learned activation step may go from its calibrated value."""


class UnitState:
    """What a unit runs with; an `execute.Quantised`.

    Args:
        params: of every site, calibrated or learned before.
        integers: of the unit's layers.
        sites: that the unit quantises.
        reads: the site whose codes each layer reads; its step and the layer's scales are what the bias is
            rounded to.
        device: where the unit runs.
        activations: False quantises weights and biases alone.

    Attributes:
        factors: learned step size of a site / its calibrated one, scalar tensors by site name; where steps
            are learned absolutely, the step size itself until `freeze`.
        learned: values that replace the fixed ones while rounding is learned.
        drop: masks that let float values through behind learned quantisers; None quantises all.
    """

    def __init__(
        self,
        params: Mapping[str, QuantParams],
        integers: Mapping[fx.Node, LayerIntegers],
        *,
        sites: Iterable[str],
        reads: Mapping[fx.Node, str] = MappingProxyType({}),
        device: torch.device,
        activations: bool = True,
    ) -> None:
        self._params = params
        self._activations = activations
        self._absolute = False
        self._steps = {
            name: torch.tensor(params[name].scale, device=device) for name in {*sites, *reads.values()}
        }
        self._reads = reads
        self._fixed = {layer: dequantised(fixed, device=device) for layer, fixed in integers.items()}
        self.factors: dict[str, Tensor] = {}
        self.learned: Mapping[fx.Node, LayerValues] = {}
        self.drop: MaskPool | None = None

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        """See execute.Quantised; `value` itself where activations are not quantised."""
        if not self._activations:
            return value
        params, is_learned = self._params[site.name], site.name in self.factors
        keep = self.drop.like(value) if is_learned and self.drop is not None else None
        return FakeQuantise.apply(
            value,
            self._step(site.name),
            params.qmin - params.zero_point,
            params.qmax - params.zero_point,
            keep,
        )

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        """See execute.Quantised; the bias is the one that ships with the steps as they are now."""
        values = self.learned.get(layer) or self._fixed.get(layer)
        if values is None or layer not in self._reads:
            return None if values is None else (values.weight, values.bias)
        return values.shipped(self._step(self._reads[layer]))

    def learn_steps(
        self, names: Sequence[str], *, device: torch.device, absolute: bool = False
    ) -> list[Tensor]:
        """Make the step sizes of these sites learnable, relative to the calibrated ones or themselves;
        returns what is learned.
        """
        self._absolute = absolute
        first = {name: self._params[name].scale if absolute else 1.0 for name in names}
        self.factors = {
            name: torch.tensor(value, device=device, requires_grad=True) for name, value in first.items()
        }
        return list(self.factors.values())

    def freeze(self) -> None:
        """End learning: factors stay as they are, relative, weights are the fixed ones again, nothing is
        dropped.
        """
        self.drop, self.learned = None, {}
        self.factors = {name: self._relative(name, factor.detach()) for name, factor in self.factors.items()}
        self._absolute = False

    def _step(self, name: str) -> Tensor:
        """Step size of a site as it is now."""
        factor = self.factors.get(name)
        return (
            self._steps[name]
            if factor is None
            else self._steps[name] * self._relative(name, factor).clamp(LEAST_FACTOR, LARGEST_FACTOR)
        )

    def _relative(self, name: str, factor: Tensor) -> Tensor:
        return factor / self._steps[name] if self._absolute else factor


def dequantised(integers: LayerIntegers, *, device: torch.device) -> LayerValues:
    """The float32 values that the integers stand for."""
    wide = integers.scales.reshape(-1, *[1] * (integers.codes.ndim - 1))
    return LayerValues(
        weight=torch.as_tensor(integers.codes.astype(np.float32) * wide, device=device),
        scales=torch.as_tensor(integers.scales, device=device),
        bias=None if integers.bias is None else torch.as_tensor(integers.bias, device=device),
    )
