"""A model whose weights outweigh its graph, so that widths decide the size of the file."""

from __future__ import annotations

import torch
from torch import nn


def wide() -> nn.Module:
    """Four convolutions of very different gain, and a linear head; seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU()]
        for gain in (1.0, 0.02, 1.0, 0.1):
            layer = nn.Conv2d(16, 16, 3, padding=1)
            layer.weight.data *= gain * 2
            layers += [layer, nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    model[-1].weight.data *= 30
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return model.eval()
