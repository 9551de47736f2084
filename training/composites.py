"""Images of several classes at once, made from images of one: what a fused prompt shall mean.

Each part is shrunk and moved towards its own place, so that its object stays in sight; soft masks join the
parts, in the spirit of CutMix (Yun et al. 2019) but with edges that a 32x32 image could have.
"""

# torch leaves the types of grid_sample open.
# pyright: basic

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def composites(parts: Tensor, *, generator: torch.Generator) -> Tensor:
    """Join k images each.

    Args:
        parts: float32 [N, k, 3, H, W] in [-1, 1].
        generator: of places, sizes and edges.

    Returns:
        float32 [N, 3, H, W].
    """
    count, k, _, height, width = parts.shape
    turn = torch.rand((count, 1), generator=generator) * 2.0 * math.pi
    angle = turn + torch.arange(k) * (2.0 * math.pi / k) + 0.25 * torch.randn((count, k), generator=generator)
    # In units of half the image: where each part's centre goes, and how large it is drawn.
    distance = 0.36 + 0.1 * torch.rand((count, k), generator=generator) + 0.03 * (k - 2)
    centre = torch.stack([distance * angle.cos(), distance * angle.sin()], dim=-1)
    size = {2: 0.78, 3: 0.68, 4: 0.62}[k] + 0.14 * torch.rand((count, k), generator=generator)
    grid = _coordinates(height, width)
    # grid_sample asks where each output pixel comes from.
    source = (grid - centre[:, :, None, None, :]) / size[:, :, None, None, None]
    moved = F.grid_sample(
        parts.flatten(0, 1),
        source.flatten(0, 1),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    ).unflatten(0, (count, k))
    away = (grid - centre[:, :, None, None, :]).square().sum(-1)
    softness = 0.04 * torch.exp(1.2 * torch.rand((count, 1, 1, 1), generator=generator))
    weight = torch.softmax(-away / softness, dim=1)
    return (moved * weight[:, :, None]).sum(1)


def _coordinates(height: int, width: int) -> Tensor:
    """Pixel centres as (x, y) in [-1, 1], [H, W, 2]."""
    x = (torch.arange(width) + 0.5) * (2.0 / width) - 1.0
    y = (torch.arange(height) + 0.5) * (2.0 / height) - 1.0
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
