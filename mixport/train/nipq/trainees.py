"""The two phases of NIPQ as the loop sees them: noise with learned widths, then real quantisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mixport.quantize.prepared import Prepared
from mixport.train.loop.trainee import Rates
from mixport.train.network.block_distance import BlockDistance, Watch
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
        blocks: their distance from the float model's joins the loss; None does not look at them.
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
        blocks: BlockDistance | None = None,
    ) -> None:
        self._steps = max(1, steps)
        self._blocks = _Watched(blocks)
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
        network = self.network
        return self._blocks.run(x, network.prepared, lambda watch: network(x, self._generator, watch=watch))

    def penalty(self) -> Tensor | None:
        """How far the widths are from the budget, and blocks from the float model's."""
        widths, sites = self.network.widths.rounded(), self.network.site_widths.rounded()
        over = self._pull * excess(self.budget, self.costs, widths, sites)
        distance = self._blocks.take()
        return over if distance is None else over + distance

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
    """Fine-tune phase: whole widths, real quantisers; a `Trainee`.

    Args:
        network: with real quantisers.
        figures: of its widths.
        blocks: as in NoiseTrainee.
    """

    def __init__(
        self,
        network: QuantisedNetwork,
        *,
        figures: Mapping[str, float],
        blocks: BlockDistance | None = None,
    ) -> None:
        self.network, self._figures, self._blocks = network, dict(figures), _Watched(blocks)

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
        network = self.network
        return self._blocks.run(x, network.prepared, lambda watch: network(x, watch=watch))

    def penalty(self) -> Tensor | None:
        """How far blocks are from the float model's, None where nobody looks."""
        return self._blocks.take()

    def predict(self, x: Tensor) -> Tensor:
        """What ships."""
        return self.network(x)

    def after_step(self) -> None:
        """See Trainee."""
        self.network.hold()

    def report(self) -> Mapping[str, float]:
        """Average bits."""
        return self._figures


class _Watched:
    """The distance of blocks in the last pass, until it is taken."""

    def __init__(self, blocks: BlockDistance | None) -> None:
        self._blocks = blocks
        self._last: Tensor | None = None

    def run(self, x: Tensor, prepared: Prepared, student: Callable[[Watch], Tensor]) -> Tensor:
        if self._blocks is None:
            return student({})
        outputs, self._last = self._blocks.run(x, prepared=prepared, student=student)
        return outputs

    def take(self) -> Tensor | None:
        last, self._last = self._last, None
        return last


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
