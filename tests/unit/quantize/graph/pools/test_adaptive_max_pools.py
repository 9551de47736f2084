"""Adaptive max pools as max pools: the same values for every size."""

from __future__ import annotations

import operator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.graph.pools.adaptive_max_pools import split_adaptive_max_pools

_POOLS = {1: aten.adaptive_max_pool1d.default, 2: aten.adaptive_max_pool2d.default}


def graph_of(rank: int, outputs: list[int], *, result: int = 0) -> fx.GraphModule:
    graph = fx.Graph()
    pooled = graph.call_function(_POOLS[rank], (graph.placeholder("x"), outputs))
    graph.output(graph.call_function(operator.getitem, (pooled, result)))
    return fx.GraphModule(torch.nn.Module(), graph)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), rank=st.integers(1, 2))
def test_the_same_values(data: st.DataObject, rank: int) -> None:
    sizes, outputs = ([data.draw(st.integers(1, most)) for _ in range(rank)] for most in (13, 7))
    x = torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(0))
    module = graph_of(rank, outputs)
    wanted = module(x)
    record_shapes(module, x)
    assert len(split_adaptive_max_pools(module)) == 1
    clean(module)
    assert not any(node.target in _POOLS.values() for node in module.graph.nodes)
    assert torch.equal(module(x), wanted)


def test_one_whose_places_are_read_stays() -> None:
    module = graph_of(2, [2, 2], result=1)
    record_shapes(module, torch.randn(1, 2, 5, 5))
    assert split_adaptive_max_pools(module) == []
