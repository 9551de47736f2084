"""Learn the layers of one MLP with ReLU until its output is closest to that of the MLP with GELU."""

# torch leaves some signatures of tensors and optimisers without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mixport.quantize.learn.loop.activation_store import Activations, slices
from mixport.quantize.learn.loop.watch import Watch
from mixport.quantize.learn.mlps.find import Mlp, Values
from mixport.quantize.learn.reconstruction.optimise import batch_for

_RATE = 4e-5
"""Adam's, falling to 0 on a cosine, as published."""
_CLAMPED_WEIGHT = 2.0
"""Of the error with clipped values, as published."""
_LARGEST_TENSOR = 1 << 24
"""Elements between the two layers in one step: 64 MB each of their copies."""
_QUANTILE_SAMPLE = 1 << 16


def gelu_output(mlp: Mlp, values: Values, x: Tensor) -> Tensor:
    """Output of the MLP as it was, [..., O], for its input [..., C]."""
    hidden = functional.gelu(_hidden(mlp, values, x), approximate=mlp.approximate)
    return functional.linear(hidden, values["weight2"], values["bias2"])


def relu_output(mlp: Mlp, values: Values, x: Tensor) -> Tensor:
    """Output of the MLP with ReLU."""
    return functional.linear(_hidden(mlp, values, x).relu(), values["weight2"], values["bias2"])


def relative_error(
    mlp: Mlp, values: Values, inputs: Activations, targets: Activations, *, batch: int
) -> float:
    """Squared error of the output with ReLU over all images, relative to the target's own square, or to 1
    where that is 0.

    NaN or infinite where the output is. Summed in float64: squares of float32 values may leave float32.
    """
    wrong = total = 0.0
    with torch.no_grad():
        for part in slices(len(targets), batch):
            target = targets.at(part)
            wrong += float((relu_output(mlp, values, inputs.at(part)) - target).double().square().sum())
            total += float(target.double().square().sum())
    return wrong / total if total > 0 else wrong


def train(
    mlp: Mlp,
    values: Values,
    inputs: Activations,
    targets: Activations,
    *,
    quantile: float,
    batch: int,
    steps: int,
    seed: int,
    advance: Callable[[int, float], None],
) -> dict[str, Tensor]:
    """What the MLP with ReLU learned from the images.

    Args:
        mlp: which.
        values: of the MLP with GELU, on the device.
        inputs: of the MLP, [1 x rows, C] an image.
        targets: outputs to come close to, [1 x rows, O] an image.
        quantile: of the positive values between the layers, at which they are clipped in the second part of
            the loss.
        batch: images a step; fewer where tensors are large.
        steps: of Adam.
        seed: of batches.
        advance: is told the number of steps just done, and the latest loss, relative to the targets' square.

    Raises:
        NotLearnedError: the loss or what was learned is no finite number.
    """
    count = len(inputs)
    one = inputs.at(slice(0, 1))
    width = values["weight1"].shape[0]
    batch = batch_for(
        one.numel() // one.shape[-1] * width, wanted=batch, images=count, elements=_LARGEST_TENSOR
    )
    order = torch.randint(0, count, (steps, batch), generator=torch.Generator().manual_seed(seed)).to(
        one.device
    )
    learned = {name: value.clone().requires_grad_() for name, value in values.items()}
    optimizer = torch.optim.Adam(list(learned.values()), lr=_RATE, fused=True)
    watch = Watch(steps, advance)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        target = targets.at(order[step])
        loss = _loss(mlp, learned, inputs.at(order[step]), target, quantile=quantile)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        watch.see(step, loss)
    watch.end(learned.values())
    return {name: value.detach() for name, value in learned.items()}


def _hidden(mlp: Mlp, values: Values, x: Tensor) -> Tensor:
    if mlp.norm is not None:
        x = functional.layer_norm(x, x.shape[-1:], values["gain"], values["offset"], mlp.epsilon)
    return functional.linear(x, values["weight1"], values["bias1"])


def _loss(mlp: Mlp, values: Values, x: Tensor, target: Tensor, *, quantile: float) -> Tensor:
    """Error of the output, and of the output with large values clipped: so few of them stay that quantisers
    can cut them off.
    """
    hidden = _hidden(mlp, values, x).relu()
    power = target.square().mean() + torch.finfo(torch.float32).tiny
    direct, clamped = (
        functional.mse_loss(functional.linear(between, values["weight2"], values["bias2"]), target)
        for between in (hidden, hidden.clamp(max=positive_quantile(hidden, quantile)))
    )
    return (direct + _CLAMPED_WEIGHT * clamped) / power


def positive_quantile(values: Tensor, quantile: float) -> float:
    """Quantile of the positive values, infinity where there are none; evenly spaced samples of [..., H] stand
    for all.
    """
    flat = values.detach().reshape(-1)
    stride = max(1, flat.numel() // _QUANTILE_SAMPLE)
    while math.gcd(stride, values.shape[-1]) > 1:  # so that every channel is met
        stride += 1
    sample = flat[::stride]
    positive = sample[sample > 0]
    if not len(positive):
        return math.inf
    return float(positive.kthvalue(max(1, math.ceil(quantile * len(positive)))).values)
