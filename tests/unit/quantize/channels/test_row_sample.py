"""Places drawn from tensors: rows that are there, as many as asked for, the same ones every time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from mixport.model.programs.fx_graph import record_shapes
from mixport.quantize.channels.row_sample import Wanted, sample_rows


def doubled() -> tuple[fx.GraphModule, fx.Node]:
    """x * 2, and the node that gives it."""

    def forward(x: Tensor) -> Tensor:
        return x * 2

    graph = fx.symbolic_trace(forward)
    record_shapes(graph, torch.zeros(2, 3, 4, 5))
    return graph, next(node for node in graph.graph.nodes if node.op == "call_function")


def images(count: int, *, seed: int = 0) -> Tensor:
    """No value occurs twice."""
    order = torch.randperm(count * 60, generator=torch.Generator().manual_seed(seed))
    return order.reshape(count, 3, 4, 5).float()


def rows_of(x: Tensor, axis: int) -> list[tuple[float, ...]]:
    return [tuple(row) for row in x.movedim(axis, -1).reshape(-1, x.shape[axis]).tolist()]


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_rows_are_channels_of_one_place_and_none_comes_twice(axis: int) -> None:
    graph, node = doubled()
    x = images(2)
    found = sample_rows(graph, {node: Wanted(rows=17, axis=axis)}, [x], images=2)[node]
    assert found.dtype is torch.float32 and found.shape == (17, x.shape[axis])
    rows = rows_of(found, -1)
    assert len(set(rows)) == 17 and set(rows) <= set(rows_of(x * 2, axis))


def test_all_rows_come_where_there_are_fewer_than_asked_for() -> None:
    graph, node = doubled()
    x = images(2)
    found = sample_rows(graph, {node: Wanted(rows=1000, axis=1)}, [x], images=2)[node]
    assert sorted(rows_of(found, -1)) == sorted(rows_of(x * 2, 1)) and len(found) == 2 * 4 * 5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_each_batch_gives_its_share_rounded_up(rows: int, sizes: list[int]) -> None:
    graph, node = doubled()
    batches = [images(size, seed=seed) for seed, size in enumerate(sizes)]
    found = sample_rows(graph, {node: Wanted(rows=rows, axis=1)}, batches, images=sum(sizes))[node]
    counts = [min(math.ceil(rows * (size / sum(sizes))), size * 20) for size in sizes]
    assert len(found) == sum(counts)
    for batch, part in zip(batches, found.split(counts), strict=True):
        assert set(rows_of(part, -1)) <= set(rows_of(batch * 2, 1))


def test_the_draw_is_the_same_every_time_and_differs_from_batch_to_batch() -> None:
    graph, node = doubled()
    x = images(2)
    wanted = {node: Wanted(rows=20, axis=1)}
    first, again = (sample_rows(graph, wanted, [x, x], images=4)[node] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[:10], first[10:])  # even distances would meet the same places


def test_every_tensor_has_its_own_number_and_axis() -> None:
    graph, node = doubled()
    image = next(one for one in graph.graph.nodes if one.op == "placeholder")
    x = images(2)
    found = sample_rows(graph, {image: Wanted(rows=4, axis=1), node: Wanted(rows=6, axis=3)}, [x], images=2)
    assert list(found) == [image, node]
    assert (found[image].shape, found[node].shape) == ((4, 3), (6, 5))
    assert set(rows_of(found[image], -1)) <= set(rows_of(x, 1))
    assert set(rows_of(found[node], -1)) <= set(rows_of(x * 2, 3))


def test_nothing_is_kept_where_nothing_is_wanted() -> None:
    assert sample_rows(doubled()[0], {}, [images(2)], images=2) == {}


def test_the_state_of_torch_s_own_generator_stays() -> None:
    graph, node = doubled()
    before = torch.random.get_rng_state()
    sample_rows(graph, {node: Wanted(rows=4, axis=1)}, [images(2)], images=2)
    assert torch.equal(torch.random.get_rng_state(), before)
