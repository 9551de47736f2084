"""What a training makes small: cross entropy with labels, divergence from a teacher without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Loss of one batch.

    Attributes:
        teacher: gives outputs to imitate, in eval mode; None without one.
        teacher_weight: of the divergence.
        temperature: both outputs are divided by it before the divergence, which is multiplied by its square
            (Hinton, Vinyals, Dean, arXiv 1503.02531, section 2).
        label_weight: of the cross entropy; without labels it counts nothing.
        amp: the teacher passes in bfloat16.
    """

    teacher: nn.Module | None
    teacher_weight: float = 1.0
    temperature: float = 1.0
    label_weight: float = 1.0
    amp: bool = False

    def taught(self, images: Tensor) -> Tensor | None:
        """Log probabilities of the teacher at the temperature, None without one."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.amp):
                outputs = self.teacher(images)
            return functional.log_softmax(outputs.flatten(1).float() / self.temperature, dim=1)

    def __call__(self, outputs: Tensor, targets: Tensor | None, taught: Tensor | None) -> Tensor:
        """Scalar loss.

        Args:
            outputs: float32 [N, classes].
            targets: int64 [N] classes or float32 [N, classes] shares, None without labels.
            taught: of `taught`, for the same images.
        """
        outputs = outputs.flatten(1).float()
        total = outputs.new_zeros(())
        if targets is not None and self.label_weight > 0:
            total = total + self.label_weight * functional.cross_entropy(outputs, targets)
        if taught is not None:
            log_probabilities = functional.log_softmax(outputs / self.temperature, dim=1)
            divergence = functional.kl_div(log_probabilities, taught, log_target=True, reduction="batchmean")
            total = total + self.teacher_weight * self.temperature**2 * divergence
        return total
