"""KURE: kurtosis regularisation (Robust Quantization, arXiv 2002.07686): weights become uniform."""

from __future__ import annotations

from torch import Tensor

UNIFORM = 1.8
"""Kurtosis of a uniform distribution, which loses least when its width changes (arXiv 2002.07686, section
4)."""


def kurtosis_loss(weight: Tensor, *, target: float = UNIFORM) -> Tensor:
    """(E[((w - mean) / deviation)^4] - target)^2 over all elements."""
    centred = weight - weight.mean()
    variance = centred.square().mean()
    kurtosis = centred.pow(4).mean() / variance.square().clamp_min(1e-24)
    return (kurtosis - target).square()
