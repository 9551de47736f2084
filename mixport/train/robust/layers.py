"""Layers whose weights are regularised."""

# torch leaves named_modules without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from torch import nn

RegularLayer = nn.Conv1d | nn.Conv2d | nn.Linear


def regular_layers(module: nn.Module, *, depthwise: bool = False) -> list[tuple[str, RegularLayer]]:
    """Convolutions and linear layers by name, without depthwise convolutions: regularising those costs
    accuracy (arXiv 2208.00338, section 4.1).

    Args:
        module: float model.
        depthwise: take them all the same, for comparison.
    """
    found: list[tuple[str, RegularLayer]] = []
    for name, layer in module.named_modules():
        # A layer whose weight is parametrised is an instance of a subclass that torch makes.
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)) and (depthwise or not is_depthwise(layer)):
            found.append((str(name), layer))
    return found


def is_depthwise(layer: nn.Module) -> bool:
    """True for a convolution whose every output channel reads one input channel alone."""
    return isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups > 1 and layer.weight.shape[1] == 1
