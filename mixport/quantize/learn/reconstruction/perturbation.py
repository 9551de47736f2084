"""The average perturbation Hessian (APHQ-ViT, arXiv 2504.02508): how much each element of a unit's output
bends the model's outputs.

The publication adds the same 1e-6 to every element. Neither works everywhere. float32 loses so small a step:
with 1e-6 of the output's size, units of ResNet-20 were wrong by 12 to 58 % next to float64, with the step
below by 1.5 % at most. And a LayerNorm takes the mean of its tokens away: where only LayerNorms read a
tensor, as in a transformer's residual stream, adding one value to all elements changes nothing, and what
comes out is rounding noise. Random signs move every tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixport.quantize.gradients import gradient
from mixport.quantize.learn.loop.activation_store import Activations, slices

STEP = 1e-3
"""Perturbation / root mean square of the unit's output; below 1e-5 rounding is in the way, above 1e-2 the
kinks of Relus.
"""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """The float model behind a unit.

    Attributes:
        run: value of the unit's output and number of images -> the model's outputs, classes on axis 1;
            differentiable.
        outputs: of the float model, for every image.
    """

    run: Callable[[Tensor, int], Tensor]
    outputs: Activations


def divergence(outputs: Tensor, wanted: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softmaxes over axis 1, from `wanted`: mean over all other axes, scalar.

    Args:
        outputs: float32 [N, classes, ...].
        wanted: of the same shape; gets no gradient.
        temperature: divides both.
    """
    log_p = torch.log_softmax(wanted.detach() / temperature, 1)
    log_q = torch.log_softmax(outputs / temperature, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def perturbation_hessian(
    behind: Behind,
    target: Activations,
    *,
    temperature: float,
    batch: int,
    step: float = STEP,
    signs: torch.Generator | None = None,
) -> Tensor:
    """Mean over images of |J(O + d) - J(O - d)|, J the gradient of one image's divergence with respect to the
    unit's output O.

    Two runs of the float rest of the model for every image, forwards and backwards. The factor 1 / 2d is left
    out.

    Args:
        behind: the float model behind the unit.
        target: O of the float model.
        temperature: of the softmax.
        batch: images at once.
        step: d, added to every element, relative to the root mean square of O.
        signs: draws the sign of d, element by element; None adds the same value to all.

    Returns:
        float32 of one image's shape of O, without negative values; all 0 where O bends nothing.

    Raises:
        NotLearnedError: an operator behind the unit has no derivative, or the outputs do not depend on O.
    """
    d = step * _root_mean_square(target, batch)
    total: Tensor | None = None
    for part in slices(len(target), batch):
        images, wanted = part.stop - part.start, behind.outputs.at(part)

        def pull(value: Tensor, images: int = images, wanted: Tensor = wanted) -> Tensor:
            value = value.requires_grad_()
            with torch.enable_grad():
                # times the images: each one's gradient must not depend on how many there are in its batch
                bent = divergence(behind.run(value, images), wanted, temperature=temperature) * images
                return gradient(bent, value)

        output = target.at(part).detach()
        move = torch.full_like(output, d) if signs is None else d * _signs(output, signs)
        bend = (
            (pull(output + move) - pull(output - move))
            .abs()
            .reshape(images, -1, *output.shape[1:])
            .sum(0, dtype=torch.float64)
        )
        total = bend if total is None else total + bend
    assert total is not None
    return (total / len(target)).to(torch.float32)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2.0 * torch.randint(0, 2, like.shape, generator=generator) - 1.0).to(like)


def _root_mean_square(values: Activations, batch: int) -> float:
    total, count = 0.0, 0
    for part in slices(len(values), batch):
        some = values.at(part)
        total += float(some.square().sum(dtype=torch.float64))
        count += some.numel()
    return (total / max(count, 1)) ** 0.5
