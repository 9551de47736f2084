"""SatNL: weights through a bounded odd function whose slope is steepest at 0 (arXiv 2208.00338, section 4).

The paper uses tanh with a fixed bound. Its bound was not found: here it is a multiple of the standard
deviation of the layer's first weights (our reconstruction).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixport.train.robust.layers import regular_layers

_REACH = 0.995
"""Share of the bound beyond which a weight starts at this share: its own value has no inverse."""


class SatNL(nn.Module):
    """w = c tanh(v / c), v learned; a torch parametrization.

    Args:
        bound: c, positive.
    """

    bound: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor(bound))

    def forward(self, v: Tensor) -> Tensor:
        """The weights that are used, and exported."""
        return self.bound * torch.tanh(v / self.bound)

    def right_inverse(self, w: Tensor) -> Tensor:
        """v of given weights; those beyond the bound start just inside it."""
        return self.bound * torch.atanh((w / self.bound).clamp(-_REACH, _REACH))


def bound_weights(module: nn.Module, *, deviations: float) -> dict[str, float]:
    """Put SatNL in front of the weight of every convolution and linear layer, in place. Depthwise ones are
    left out, and those whose weight is parametrised already.

    Args:
        module: float model.
        deviations: bound of a layer, in standard deviations of its weights.

    Returns:
        the bound of each layer by name.
    """
    bounds: dict[str, float] = {}
    for name, layer in regular_layers(module):
        bound = deviations * float(layer.weight.detach().std())
        if bound > 0 and not parametrize.is_parametrized(layer, "weight"):
            bounds[name] = bound
            parametrize.register_parametrization(layer, "weight", SatNL(bound))
    return bounds
