"""What is made small: the error of a unit's output, its elements weighted or not, and what it does to the
model's outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixport.quantize.learn.reconstruction.perturbation import Behind, divergence
from mixport.records.choices.reconstruction_preset import Stage


class UnitLoss:
    """Loss of one unit in one stage; remembers its first value where the stage starts it at a fixed one.

    Args:
        stage: which loss, and its numbers.
        weights: float32 of one image's output, from `perturbation_hessian`; None weights all elements alike.
        behind: the float model behind the unit; needed where the stage has a logits_weight.
        channel_axis: of the unit's output, from `channel_axis`.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        weights: Tensor | None = None,
        behind: Behind | None = None,
        channel_axis: int = 1,
    ) -> None:
        if stage.logits_weight > 0 and behind is None:
            raise ValueError("a stage with a logits_weight needs the float model behind the unit")
        self.stage, self.behind, self.channel_axis = stage, behind, channel_axis
        self._weights = weights
        self._first: float | None = None

    def __call__(self, got: Tensor, target: Tensor, images: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            got: output of the quantised unit.
            target: of the float one, of the same shape.
            images: int64 [B], which calibration images these are.
        """
        error = self._started(
            output_error(
                got, target, weights=self._weights, power=self.stage.power, channel_axis=self.channel_axis
            )
        )
        if self.behind is None or self.stage.logits_weight == 0:
            return error
        wanted = self.behind.outputs.at(images)
        outputs = self.behind.run(got, len(images))
        return error + self.stage.logits_weight * divergence(
            outputs, wanted, temperature=self.stage.temperature
        )

    def channels(self, output: Tensor) -> int:
        """Channels of the unit's output, over which the error is summed."""
        return _channels(output, self.channel_axis)

    def _started(self, error: Tensor) -> Tensor:
        if self.stage.loss_start is None:
            return error
        if self._first is None and float(error.detach()) > 0:
            self._first = float(error.detach())
        return error if self._first is None else error * (self.stage.loss_start / self._first)


def output_error(
    got: Tensor, target: Tensor, *, weights: Tensor | None = None, power: float = 2.0, channel_axis: int = 1
) -> Tensor:
    """Error of a unit's output to a power, summed over channels and averaged over the rest, scalar.

    Args:
        got: float32 [images x rows, ...].
        target: of the same shape.
        weights: float32 [rows, ...], of one image; multiply the squared errors.
        power: of the error, without weights.
        channel_axis: 1 as in [N, C, H, W] and [N, C], the last one in [N, T, C] and [N, H, W, C].
    """
    count = _channels(target, channel_axis)
    if weights is not None:
        squared = (got - target).square().reshape(-1, *weights.shape)
        return (squared * weights).mean() * count
    if power == 2.0:
        return torch.nn.functional.mse_loss(got, target) * count
    return (got - target).abs().pow(power).mean() * count


def _channels(output: Tensor, axis: int) -> int:
    """The published losses sum over channels and average over the rest; one number an image is one
    channel.
    """
    return output.shape[axis] if output.dim() > 1 else 1
