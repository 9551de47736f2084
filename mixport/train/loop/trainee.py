"""What the loop trains: a method's network, seen through the few things that the loop needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rate of one group of parameters.

    Attributes:
        parameters: of the group.
        factor: of the learning rate.
        decay: weight decay; 0 for biases, scales, intervals and widths.
        rate: the learning rate itself, whatever the training's is; None takes the factor.
    """

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0
    decay: float = 0.0
    rate: float | None = None


class Trainee(Protocol):
    """A network in one phase of a method."""

    @property
    def module(self) -> nn.Module:
        """Everything that a checkpoint holds: parameters and buffers."""
        ...

    def groups(self, *, weight_decay: float) -> list[Rates]:
        """What the optimiser moves."""
        ...

    def start_epoch(self, generator: torch.Generator) -> None:
        """Before an epoch; the generator is the epoch's own."""
        ...

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [N, classes] while training."""
        ...

    def penalty(self) -> Tensor | None:
        """What is added to the loss, None for nothing."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Outputs [N, classes] as they would ship."""
        ...

    def after_step(self) -> None:
        """Hold what may not leave its range."""
        ...

    def report(self) -> Mapping[str, float]:
        """Figures of the epoch: average bits."""
        ...
