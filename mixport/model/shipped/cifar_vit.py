"""The small vision transformer for 32x32 images that `builtin:cifar10-vit` is: timm's, of 64 patches, whose
mean is classified.
"""

# timm is partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

from torch import nn

_STRUCTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 192,
    "depth": 6,
    "num_heads": 3,
    "mlp_ratio": 2,
    "num_classes": 10,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}


def cifar_vit(**changes: Any) -> nn.Module:
    """Takes float32 [N, 3, 32, 32], gives [N, 10].

    Args:
        changes: arguments of timm.models.VisionTransformer that replace or join ours.
    """
    from timm.models import VisionTransformer

    return VisionTransformer(**{**_STRUCTURE, **changes})
