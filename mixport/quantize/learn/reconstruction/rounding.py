"""Weights while their rounding is learned: AdaRound (arXiv 2004.10568), GENIE-M (arXiv 2212.04780), and free
codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixport.arithmetic.dtypes import IntType
from mixport.quantize.learn.reconstruction.layer_values import LayerValues
from mixport.records.choices.reconstruction_preset import Method

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the rectified sigmoid (AdaRound, equation 23)."""
_LEAST_FACTOR = 1 / 16
"""A weight scale may shrink to this part of its first value; further, its codes would all saturate."""


@dataclass(frozen=True, kw_only=True)
class LayerStart:
    """A layer before reconstruction.

    Attributes:
        weight: float32 [O, ...].
        bias: float32 [O], None without one.
        scales: float32 [O], chosen for rounding to nearest.
        least: float32 [O], what the scales may not fall below.
        bias_unit: float32 [O], what a step of 1 moves a bias by.
        bits: width.
        mean: float32 [G, n], of what the output channels of each group read, in the order of their weights;
            None where biases do not follow the weights.
    """

    weight: Tensor
    bias: Tensor | None
    scales: Tensor
    least: Tensor
    bias_unit: Tensor
    bits: int
    mean: Tensor | None = None


class Rounding(nn.Module):
    """The weights of one unit's layers as functions of what is learned; all layers in one flat tensor, so
    that one call serves them.

    `sigmoid`: code = clamp(floor(w / s0) + h), h in [0, 1] a rectified sigmoid of the learned logits; the
    floor stays that of the first scale while the scale itself may move (GENIE-M), which keeps joint training
    well posed. `free`: code = clamp(round(u)) with u = w / s0 learned directly and straight through: a code
    may end anywhere. Scales are learned relative to s0, or themselves where `absolute`. Inputs that no output
    channel reads have codes of 0, and keep them: they were added for the sake of a kernel.

    Where the mean of what a layer reads is known, its bias follows its weights so that the mean of what it
    gives stays: what is learned is the bias of a layer that reads centred values. Else each step of a code or
    a scale moves an output behind Relus, whose inputs are all positive, by far more than it changes its
    shape, and the bias is late.
    """

    def __init__(self, layers: Sequence[LayerStart], *, method: Method, absolute: bool = False) -> None:
        super().__init__()
        self.layers, self.method = tuple(layers), method
        self._sizes = [layer.weight.numel() for layer in layers]
        kinds = [IntType(bits=layer.bits, signed=True, narrow=layer.bits == 8) for layer in layers]
        ratio = torch.cat([(layer.weight / _wide(layer.scales, layer.weight)).flatten() for layer in layers])
        read = torch.cat([(layer.weight != 0).any(0).expand_as(layer.weight).flatten() for layer in layers])
        self._low = self._spread([kind.qmin for kind in kinds], ratio) * read
        self._high = self._spread([kind.qmax for kind in kinds], ratio) * read
        self._floor = torch.floor(ratio)
        if method == "sigmoid":
            rest = ratio - self._floor
            self.codes_at = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))
        else:
            self.codes_at = nn.Parameter(self._held(ratio))
        # The first scale in the units of what is learned: Adam's rate is then relative to it, or absolute.
        self._first = [layer.scales if absolute else torch.ones_like(layer.scales) for layer in layers]
        self.scales_at = nn.ParameterList([nn.Parameter(first.clone()) for first in self._first])
        with torch.no_grad():
            hard = self.split(self.codes(hard=True))
            self._origin = [
                None if layer.mean is None else _mean_output(codes * _wide(layer.scales, codes), layer.mean)
                for layer, codes in zip(layers, hard, strict=True)
            ]
        self.bias_moves = nn.ParameterList([nn.Parameter(torch.zeros_like(layer.scales)) for layer in layers])

    def soft(self) -> Tensor:
        """h of every weight, flat; of `sigmoid`."""
        return torch.clamp(torch.sigmoid(self.codes_at) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def codes(self, *, hard: bool) -> Tensor:
        """Codes of every weight, flat: continuous while `sigmoid` is learned, integers where `hard`."""
        if self.method == "sigmoid":
            up = (self.codes_at >= 0).float() if hard else self.soft()
            return torch.minimum(torch.maximum(self._floor + up, self._low), self._high)
        inside = self._held(self.codes_at)
        rounded = self._rounded(self.codes_at)
        return rounded if hard else inside + (rounded - inside.detach())

    def scales(self, index: int) -> Tensor:
        """Positive scales of one layer, float32 [O]."""
        layer = self.layers[index]
        return torch.maximum(layer.scales * self._factor(index).clamp_min(_LEAST_FACTOR), layer.least)

    def at_floor(self, index: int) -> int:
        """Channels whose scale wanted to be smaller than it may."""
        layer, factor = self.layers[index], self._factor(index).detach()
        return int(((factor < _LEAST_FACTOR) | (layer.scales * factor < layer.least)).sum())

    def _factor(self, index: int) -> Tensor:
        """Scales of one layer / the first ones, float32 [O]; they may be anything."""
        return self.scales_at[index] / self._first[index]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Values of all weights, layer by layer in their weights' shapes."""
        parts = torch.split(flat, self._sizes)
        return [part.view(layer.weight.shape) for part, layer in zip(parts, self.layers, strict=True)]

    def weights(self) -> list[LayerValues]:
        """Values of each layer, differentiable."""
        values: list[LayerValues] = []
        for index, codes in enumerate(self.split(self.codes(hard=False))):
            scales = self.scales(index)
            weight = codes * _wide(scales, codes)
            values.append(LayerValues(weight=weight, scales=scales, bias=self._bias(index, weight)))
        return values

    def bias(self, index: int) -> Tensor | None:
        """Bias of one layer with hard codes, None without one."""
        codes = self.split(self.codes(hard=True))[index]
        return self._bias(index, codes * _wide(self.scales(index), codes))

    def _bias(self, index: int, weight: Tensor) -> Tensor | None:
        layer, origin = self.layers[index], self._origin[index]
        if layer.bias is None:
            return None
        moved = layer.bias + self.bias_moves[index] * layer.bias_unit
        return (
            moved
            if layer.mean is None or origin is None
            else moved - _mean_output(weight, layer.mean) + origin
        )

    def undecided(self, beta: float) -> Tensor:
        """Sum of 1 - |2h - 1|^beta over all weights (AdaRound, equation 24)."""
        distance = torch.abs(2.0 * self.soft() - 1.0)
        return (1.0 - torch.exp(beta * torch.log(distance.clamp_min(1e-12)))).sum()

    def unsettled(self) -> Tensor:
        """Mean over all weights of the squared distance from the middle of their code's step (arXiv
        2203.11086, equation 5).
        """
        inside = self._held(self.codes_at)
        return (inside - self._rounded(inside)).square().mean()

    def hold(self) -> None:
        """Bring free codes back to within half a step of the last one, after a step of the optimiser.

        Further out there is no gradient: a weight that Adam's momentum carried there could not come back.
        """
        if self.method == "free":
            with torch.no_grad():
                self.codes_at.copy_(self._held(self.codes_at))

    def _rounded(self, values: Tensor) -> Tensor:
        """Nearest codes, without a gradient."""
        return torch.minimum(torch.maximum(torch.round(values.detach()), self._low), self._high)

    def _held(self, values: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(values, self._low - 0.5), self._high + 0.5)

    def _spread(self, values: Sequence[int], like: Tensor) -> Tensor:
        return torch.repeat_interleave(torch.tensor(values, dtype=like.dtype), torch.tensor(self._sizes)).to(
            like.device
        )


def beta_at(step: int, steps: int, *, warmup: float, start: float = 20.0, end: float = 2.0) -> float | None:
    """Exponent of the rounding regulariser: None during warm-up, then linear from `start` to `end`."""
    first = math.ceil(warmup * steps)
    if step < first:
        return None
    return start + (end - start) * (step - first) / max(1, steps - 1 - first)


def _mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """What a layer without bias gives for the mean of what it reads, float32 [O]."""
    groups, inputs = mean.shape
    return (weight.reshape(groups, -1, inputs) @ mean[..., None]).flatten()


def _wide(per_channel: Tensor, weight: Tensor) -> Tensor:
    return per_channel.view(-1, *([1] * (weight.dim() - 1)))
