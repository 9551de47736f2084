"""Trained weights put into a prepared graph, so that it is the float model of what follows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from mixport.model.programs.fx_graph import add_constant
from mixport.quantize.prepared import Prepared


def put_weights(prepared: Prepared, values: Mapping[str, Tensor]) -> None:
    """Give every layer of the graph its own constants, in place.

    Args:
        prepared: graph and names of its layers.
        values: `weight/NAME` float32 [O, ...] and `bias/NAME` float32 [O] of each layer; an empty bias is
            none.
    """
    graph = prepared.graph
    for node, width in prepared.widths.items():
        operands = list(node.args)
        weight = values[f"weight/{width.name}"].detach().cpu()
        operands[1] = add_constant(graph, weight, name=f"{width.name}_trained_weight", before=node)
        bias = values[f"bias/{width.name}"].detach().cpu()
        if bias.numel():
            operands[2] = add_constant(graph, bias, name=f"{width.name}_trained_bias", before=node)
        node.args = tuple(operands)
    graph.recompile()


def as_float32(values: Tensor) -> np.ndarray:
    """A parameter as float32 numpy."""
    return values.detach().cpu().float().numpy()
