"""Core ATen back into the operators that quantisation knows: what `run_decompositions()` took apart is put
together again.

A decomposed program computes the same function by more and smaller operators: aten.convolution, addmm on
transposed weights, bmm on expanded operands, x * sigmoid(x). Taken as they are, layers would stay in float,
and activations get codes that the model as it was written does not have.
"""

from __future__ import annotations

from torch import fx

from mixport.model.programs.fx_graph import aten, clean
from mixport.quantize.graph.recompose.functions import recompose_functions
from mixport.quantize.graph.recompose.operators import rename_operators
from mixport.quantize.graph.recompose.products import recompose_products
from mixport.records.decision import Decision

_MARKS = frozenset(
    {
        aten.convolution.default,
        aten.native_layer_norm.default,
        aten.native_group_norm.default,
        aten._softmax.default,
        aten._log_softmax.default,
    }
)
"""Operators that decomposition leaves, and a model as written does not call."""


def recompose(graph: fx.GraphModule) -> list[Decision]:
    """Rewrite a decomposed graph in place; any other one stays as it is, also where it holds the same
    patterns by the user's own hand.
    """
    if not any(node.target in _MARKS for node in graph.graph.nodes):
        return []
    for rewrite in (rename_operators, recompose_products, recompose_functions):
        rewrite(graph)
        clean(graph)
    return [
        Decision(
            where="model",
            what="operators of core ATen put together again",
            why="the program was decomposed (run_decompositions)",
        )
    ]
