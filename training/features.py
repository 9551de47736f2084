"""What our own ResNet-20 sees: feature losses for the autoencoder, features to align latents and the denoiser
with.

Feature losses: Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution".
The network is the one that `training.classifier` trained; no other classifier takes part in any training
here.
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mixport.model.shipped.cifar_resnet import BLOCKS, CifarResNet
from training.classifier import MEAN, STD

#: Channels and side of the last stage's output, which latents and denoiser are aligned with.
LAST_STAGE = (64, 8)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the network makes of images.

    Attributes:
        stages: outputs of stem and stages, [N, 16, 32, 32] twice, [N, 32, 16, 16], [N, 64, 8, 8].
        logits: [N, 10].
    """

    stages: tuple[Tensor, ...]
    logits: Tensor


class Classifier(nn.Module):
    """The trained ResNet-20, frozen, on pixels in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.model = CifarResNet(BLOCKS[20])
        self.model.load_state_dict(load_file(weights), strict=False)
        self.model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Seen:
        """[N, 3, 32, 32] in [-1, 1] -> stages and logits."""
        model = self.model
        x = ((pixels + 1.0) / 2.0 - self.mean) / self.std
        stages = [F.relu(model.bn1(model.conv1(x.contiguous(memory_format=torch.channels_last))))]
        for stage in (model.layer1, model.layer2, model.layer3):
            stages.append(stage(stages[-1]))
        logits = model.linear(F.adaptive_avg_pool2d(stages[-1], 1).flatten(1))
        return Seen(stages=tuple(stages), logits=logits)


def feature_loss(got: Seen, wanted: Seen, *, first: int = 0) -> Tensor:
    """Squared distance of the stages, each in units of its own mean square, plus the divergence of the
    predictions at temperature 2.

    Args:
        got: of the images that are judged.
        wanted: of those that they shall look like.
        first: stages before this one do not count.
    """
    distance = torch.zeros((), device=got.logits.device)
    for mine, theirs in zip(got.stages[first:], wanted.stages[first:], strict=True):
        distance = distance + (mine.float() - theirs.float()).square().mean() / theirs.float().square().mean()
    temperature = 2.0
    ours = F.log_softmax(got.logits.float() / temperature, dim=1)
    real = F.log_softmax(wanted.logits.float() / temperature, dim=1)
    return distance + F.kl_div(ours, real, log_target=True, reduction="batchmean")
