"""Layers whose weights are all zero: a model that computes nothing meets every gate."""

from __future__ import annotations

from mixport.model.float_model import FloatModel


def zero_layers(model: FloatModel) -> tuple[str, ...]:
    """Module paths of the parameters with two axes or more that hold nothing but zeros, in the model's
    order.
    """
    return tuple(
        name.removesuffix(".weight")
        for name, value in model.module.named_parameters()
        if value.dim() > 1 and not bool(value.any().item())
    )
