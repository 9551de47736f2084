"""Softmaxes that have a portable form of their own: see mixport.arithmetic.portable_float."""

from __future__ import annotations

import torch
from torch import fx

from mixport.arithmetic.portable_float import softmax_bits
from mixport.model.programs.fx_graph import argument, aten, shape_of


def numerator_bits(node: fx.Node) -> int | None:
    """Bits of the numerators of a float32 softmax over the last axis; None for any other node, and for rows
    that are too long.
    """
    if node.target is not aten.softmax.int:
        return None
    shape, dtype = shape_of(node), argument(node, 2, "dtype")
    is_last = bool(shape) and int(argument(node, 1, "dim")) % len(shape) == len(shape) - 1
    if not is_last or dtype not in {None, torch.float32}:
        return None
    try:
        return softmax_bits(shape[-1])
    except ValueError:
        return None
