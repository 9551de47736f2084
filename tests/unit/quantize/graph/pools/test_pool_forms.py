"""Average pools of every kind as layers: the same function as ATen's, for windows of any size, stride and
padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.graph.pools.pool_forms import AVERAGE_POOLS
from mixport.quantize.graph.pools.pool_windows import (
    Window,
    adaptive_windows,
    are_whole,
    runs,
    strided_windows,
)
from mixport.quantize.graph.pools.pooling import unify_average_pools
from mixport.records.errors import UnsupportedModelError

_STRIDED = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
_ADAPTIVE = {
    1: aten.adaptive_avg_pool1d.default,
    2: aten.adaptive_avg_pool2d.default,
    3: aten.adaptive_avg_pool3d.default,
}


def check(operator: Any, arguments: tuple[object, ...], shape: tuple[int, ...]) -> None:
    """The pool of a random tensor of this shape, as it is and as layers."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    graph = fx.Graph()
    pooled = graph.call_function(operator, (graph.placeholder("x"), *arguments))
    graph.output(pooled)
    module = fx.GraphModule(torch.nn.Module(), graph)
    record_shapes(module, x)
    unify_average_pools(module)
    clean(module)
    assert not any(node.target in AVERAGE_POOLS for node in module.graph.nodes)
    # Sums of at most 125 float32 values in another order.
    torch.testing.assert_close(module(x), operator(x, *arguments), rtol=1e-5, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rank=st.integers(1, 3), batched=st.booleans())
def test_strided_pools(data: st.DataObject, rank: int, batched: bool) -> None:
    sizes, kernels, paddings, strides = list[int](), list[int](), list[int](), list[int]()
    for _ in range(rank):
        sizes.append(data.draw(st.integers(1, 11)))
        kernels.append(data.draw(st.integers(1, min(5, sizes[-1]))))
        paddings.append(data.draw(st.integers(0, kernels[-1] // 2)))
        strides.append(data.draw(st.integers(1, 4)))
    flags = data.draw(st.booleans()), data.draw(st.booleans())
    divisor = [data.draw(st.sampled_from([None, 3]))] if rank > 1 else []
    check(
        _STRIDED[rank], (kernels, strides, paddings, *flags, *divisor), (*([2] if batched else []), 3, *sizes)
    )


@settings(max_examples=50, deadline=None)
@given(data=st.data(), rank=st.integers(1, 3), batched=st.booleans())
def test_adaptive_pools(data: st.DataObject, rank: int, batched: bool) -> None:
    sizes, outputs = ([data.draw(st.integers(1, most)) for _ in range(rank)] for most in (11, 7))
    check(_ADAPTIVE[rank], (outputs,), (*([2] if batched else []), 3, *sizes))


def test_windows_all_different_and_cut_are_refused() -> None:
    arguments = ([41, 41], [1, 1], [20, 20], True, False)
    with pytest.raises(UnsupportedModelError, match="ceil_mode") as caught:
        check(_STRIDED[2], arguments, (1, 1, 64, 64))
    assert caught.value.hint


def test_windows_cut_at_the_end_divide_by_what_is_left() -> None:
    windows = strided_windows(15, kernel=2, stride=2, padding=0, ceil_mode=True, include_pad=True)
    assert len(windows) == 8 and windows[-1] == Window(start=14, stop=15, count=1)
    assert [(run.start, run.stop, run.step) for run in runs(windows)] == [(0, 14, 2), (14, 15, 1)]


def test_a_window_in_the_trailing_padding_alone_is_left_out() -> None:
    # 5 rows, padding 1: the fourth window would start at row 5, in the padding.
    assert len(strided_windows(5, kernel=2, stride=2, padding=1, ceil_mode=True, include_pad=True)) == 3


def test_padding_that_does_not_count_shortens_windows() -> None:
    windows = strided_windows(4, kernel=3, stride=1, padding=1, ceil_mode=False, include_pad=False)
    assert [(window.start, window.stop, window.count) for window in windows] == [
        (0, 2, 2),
        (0, 3, 3),
        (1, 4, 3),
        (2, 4, 2),
    ]


def test_adaptive_windows_overlap_where_they_must() -> None:
    assert [(window.start, window.stop) for window in adaptive_windows(7, 3)] == [(0, 3), (2, 5), (4, 7)]
    assert are_whole(adaptive_windows(7, 7), 7) and not are_whole(adaptive_windows(7, 3), 7)
