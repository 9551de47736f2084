"""The two phases of NIPQ as the loop sees them: noise with learned widths, then real quantisers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixport.train.loop.trainee import Rates
from mixport.train.network.quantised import QuantisedNetwork
from mixport.train.nipq.budget import Budget, Costs, average, bit_operations, excess
from mixport.train.nipq.network import NoisyNetwork

INTERVAL_RATE = 0.1
"""Learning rate of intervals, scales and steps, in units of that of the weights."""
_TRAVEL = 6.0
"""What a raw width could move by in the noise phase at its peak rate, which AdamW moves it by in each step: a
bit is a third of a unit, so that every width can be reached however few steps there are."""


class NoiseTrainee:
    """Noise phase: weights, intervals and widths move together, the budget pulls; a `Trainee`.

    Args:
        network: with noise.
        budget: of the widths.
        costs: of the sites.
        pull: weight of the budget in the loss.
        batch: images a step.
        steps: of the whole phase.
    """

    def __init__(
        self,
        network: NoisyNetwork,
        *,
        budget: Budget,
        costs: Costs,
        pull: float,
        batch: int,
        steps: int,
    ) -> None:
        self._steps = max(1, steps)
        self.network, self.budget, self.costs = network, budget, costs
        self._pull, self._largest = pull, batch * network.largest
        self._generator = torch.Generator()

    @property
    def module(self) -> nn.Module:
        """See Trainee."""
        return self.network

    def groups(self, *, weight_decay: float) -> list[Rates]:
        """See Trainee; as in NIPQ's released code only weights decay."""
        network = self.network
        return [
            Rates(parameters=list(network.layers.weight), decay=weight_decay),
            Rates(parameters=list(network.layers.bias)),
            Rates(parameters=[*network.bound, *network.interval], factor=INTERVAL_RATE),
            Rates(parameters=[network.widths.raw, network.site_widths.raw], rate=_TRAVEL / self._steps),
        ]

    def start_epoch(self, generator: torch.Generator) -> None:
        """See Trainee."""
        self._generator = generator
        self.network.draw(generator, largest=self._largest)

    def outputs(self, x: Tensor) -> Tensor:
        """See Trainee."""
        return self.network(x, self._generator)

    def penalty(self) -> Tensor | None:
        """How far the widths are from the budget."""
        widths, sites = self.network.widths.rounded(), self.network.site_widths.rounded()
        return self._pull * excess(self.budget, self.costs, widths, sites)

    def predict(self, x: Tensor) -> Tensor:
        """Real quantisers at the nearest widths."""
        return self.network(x)

    def after_step(self) -> None:
        """See Trainee."""
        self.network.hold()

    def report(self) -> Mapping[str, float]:
        """Average bits of free weights and activations, and bit-operations."""
        widths, sites = self.network.widths.bits().detach(), self.network.site_widths.bits().detach()
        return describe_widths(self.costs, widths, sites)


class FinetuneTrainee:
    """Fine-tune phase: whole widths, real quantisers; a `Trainee`."""

    def __init__(self, network: QuantisedNetwork, *, figures: Mapping[str, float]) -> None:
        self.network, self._figures = network, dict(figures)

    @property
    def module(self) -> nn.Module:
        """See Trainee."""
        return self.network

    def groups(self, *, weight_decay: float) -> list[Rates]:
        """See Trainee."""
        network = self.network
        return [
            Rates(parameters=list(network.layers.weight), decay=weight_decay),
            Rates(parameters=list(network.layers.bias)),
            Rates(parameters=[*network.scale, *network.step], factor=INTERVAL_RATE),
        ]

    def start_epoch(self, generator: torch.Generator) -> None:
        """See Trainee; nothing is random."""

    def outputs(self, x: Tensor) -> Tensor:
        """See Trainee."""
        return self.network(x)

    def penalty(self) -> Tensor | None:
        """None."""
        return None

    def predict(self, x: Tensor) -> Tensor:
        """What ships."""
        return self.network(x)

    def after_step(self) -> None:
        """See Trainee."""
        self.network.hold()

    def report(self) -> Mapping[str, float]:
        """Average bits."""
        return self._figures


def describe_widths(costs: Costs, widths: Tensor, sites: Tensor) -> dict[str, float]:
    """Average bits of free weights and activations, and thousands of millions of bit-operations an image."""
    found = {"gbop": float(bit_operations(costs, widths, sites)) / 1e9}
    weights = average([float(bits) for bits in widths], costs.weights)
    activations = average([float(bits) for bits in sites], costs.activations)
    if weights is not None:
        found["weight_bits"] = weights
    if activations is not None:
        found["activation_bits"] = activations
    return found
