"""What a run of a model does beside giving its output: write into its input, change its buffers, draw random
numbers.
"""

# torch leaves parts of its own signatures without types (get_rng_state).
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SideEffect:
    """What was seen, and what to change in `forward`."""

    what: str
    repair: str


def side_effect(module: nn.Module, images: Tensor) -> SideEffect | None:
    """The first side effect of one run, None where there is none that can be told.

    Args:
        module: takes `images`.
        images: float32 [N, 3, H, W]; not changed.
    """
    given, before, generators = images.clone(), _tensors(module), _generators()
    with torch.no_grad():
        module(given)
    if not torch.equal(given, images):
        return SideEffect(
            what="forward writes into its input",
            repair="begin forward with x = x.clone(), or write y = x - a for x.sub_(a)",
        )
    after = _tensors(module)
    changed = [
        name for name, value in after.items() if name not in before or not torch.equal(value, before[name])
    ]
    if changed:
        return SideEffect(
            what=f"forward changes {', '.join(changed[:3])}",
            repair="leave counters and running averages as they are where self.training is False",
        )
    if _generators() != generators:
        return SideEffect(
            what="forward draws random numbers",
            repair=(
                "draw them where self.training is True only: F.dropout(x, p, training=self.training), "
                "masks and noise left out"
            ),
        )
    return None


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, those that no state dict holds too."""
    return {
        name: value.detach().clone()
        for name, value in chain(module.named_parameters(), module.named_buffers())
    }


def _generators() -> tuple[bytes, str, str]:
    """The states of the generators that a forward may draw from."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(random.getstate()),
        repr(np.random.get_state(legacy=False)),
    )
