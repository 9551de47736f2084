"""Max pools with ceil_mode: the same maxima, in a form whose shape every reader infers alike."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.graph.pools.ceil_modes import settle_ceil_modes


def settled(numbers: tuple[list[int], list[int], list[int], list[int]], size: tuple[int, int]) -> fx.Node:
    """The pool of a random map after the rewrite; its values must be what they were."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    graph = fx.Graph()
    graph.output(graph.call_function(aten.max_pool2d.default, (graph.placeholder("x"), *numbers, True)))
    module = fx.GraphModule(torch.nn.Module(), graph)
    wanted = module(x)
    record_shapes(module, x)
    settle_ceil_modes(module)
    clean(module)
    assert torch.equal(module(x), wanted)
    return next(node for node in module.graph.nodes if node.target is aten.max_pool2d.default)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_same_maxima(data: st.DataObject) -> None:
    sizes, kernels, strides, pads, steps = (list[int]() for _ in range(5))
    for _ in range(2):
        kernels.append(data.draw(st.integers(1, 4)))
        strides.append(data.draw(st.integers(1, 4)))
        pads.append(data.draw(st.integers(0, kernels[-1] // 2)))
        steps.append(data.draw(st.sampled_from([1, 1, 2])))
        sizes.append(data.draw(st.integers(max(1, steps[-1] * (kernels[-1] - 1) + 1 - 2 * pads[-1]), 13)))
    pool = settled((kernels, strides, pads, steps), (sizes[0], sizes[1]))
    if max(steps) == 1 and pool.args[5]:
        # Where it stays, the shape is what the ONNX formula gives on both axes.
        for i in range(2):
            room = sizes[i] + 2 * pads[i] - kernels[i]
            assert (-(-room // strides[i])) * strides[i] < sizes[i] + pads[i]


def test_a_mode_that_makes_no_window_goes() -> None:
    # 11 pixels: the fifth window would lie in the padding alone. 13: all fit.
    for size in (11, 13):
        assert settled(([1, 3], [1, 3], [0, 1], [1, 1]), (5, size)).args[5] is False


def test_a_mode_that_makes_one_stays() -> None:
    assert settled(([1, 3], [1, 3], [0, 1], [1, 1]), (5, 12)).args[5] is True


def test_a_border_is_copied_where_the_other_axis_is_misread() -> None:
    # Rows: 12, the fifth window would start at 12. Columns: 10, the fourth reads one.
    pool = settled(([2, 2], [3, 3], [0, 0], [1, 1]), (12, 10))
    assert pool.args[5] is False and pool.args[0].target is aten.replication_pad2d.default
