from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.units import find_units
from tests import reconstruction as small
from tests import structures
from tests.reconstruction import task_of


def executor_of(module: nn.Module, folder: Path) -> Executor:
    task, _ = task_of(module, folder)
    shape = task.input_shape
    return Executor(
        task.graph, task.plan, input_shape=shape, dynamic_batch=task.dynamic_batch, device=torch.device("cpu")
    )


@pytest.mark.parametrize(
    "make",
    [
        small.stack,
        small.windows,
        small.class_token,
        structures.boolean_mask,
        structures.slices_written_in_place,
        structures.grouped_queries,
        structures.largest_channel,
    ],
)
def test_units_in_a_row_give_what_the_model_gives(make: object, tmp_path: Path) -> None:
    module: nn.Module = make()  # type: ignore[operator]
    executor = executor_of(module, tmp_path)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    value: Tensor = x
    with torch.no_grad():
        for unit in find_units(executor.graph, executor.plan):
            value = executor.run(unit, value, images=3)
        torch.testing.assert_close(value, module(x), rtol=1e-4, atol=1e-5)


def test_a_slice_assignment_has_a_gradient(tmp_path: Path) -> None:
    executor = executor_of(structures.slices_written_in_place(), tmp_path)
    assert any("copy" in str(node.target) for node in executor.graph.graph.nodes), "the case is the one meant"
    value = torch.randn(2, 3, 16, 16, requires_grad=True)
    x = value
    for unit in find_units(executor.graph, executor.plan):
        value = executor.run(unit, value, images=2)
    value.sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


def test_the_images_axis_is_told(tmp_path: Path) -> None:
    executor = executor_of(small.windows(), tmp_path)
    nodes = [node for node in executor.graph.graph.nodes if node.op == "call_function" and node.meta["shape"]]
    told = executor.nodes_by_image(nodes)
    assert {node.meta["shape"][0] for node in told} >= {2, 8}
    assert nodes[-1] in told
    tokens_first = executor_of(small.seeded(_TokensFirst), tmp_path)
    inner = [
        node
        for node in tokens_first.graph.graph.nodes
        if node.op == "call_function" and node.meta["shape"][:2] == (16, 2)
    ]
    assert inner and not tokens_first.nodes_by_image(inner)


@pytest.mark.parametrize("tokens_first", [True, False])
def test_rows_of_one_token_are_not_rows_of_one_image(tokens_first: bool, tmp_path: Path) -> None:
    """[tokens x images, C] and [images x tokens, C] have the same shape for any number of images."""
    executor = executor_of(small.seeded(lambda: _Rows(tokens_first=tokens_first)), tmp_path)
    rows = [
        node
        for node in executor.graph.graph.nodes
        if node.op == "call_function" and node.meta["shape"][:1] == (32,)
    ]
    assert len(rows) >= 2, "the case is the one meant"
    assert executor.nodes_by_image(rows) == (set() if tokens_first else set(rows))


class _Rows(nn.Module):
    """All tokens of all images as the rows of one matrix."""

    def __init__(self, *, tokens_first: bool) -> None:
        super().__init__()
        self.patch, self.a, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)
        self.order, self.split, self.back = (
            ((2, 0, 1), (16, -1, 8), 0) if tokens_first else ((0, 2, 1), (-1, 16, 8), 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patch(x).flatten(2).permute(self.order).reshape(-1, 8)
        return self.head(torch.relu(self.a(rows)).reshape(self.split).mean(self.back))


class _TokensFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.a, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(self.patch(x).flatten(2).permute(2, 0, 1))).mean(0))


class _Positions(nn.Module):
    """Positions that the graph counts itself, once for all images and once for each."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = tokens + torch.arange(16, dtype=torch.float32, device=x.device)[:, None]
        every = torch.full((x.shape[0], 1, 1), 0.5, device=x.device) + tokens.new_ones((x.shape[0], 1, 8))
        return self.head(torch.relu(tokens + every).mean(1))


def test_what_the_graph_counts_itself_follows_to_the_device(tmp_path: Path) -> None:
    task, _ = task_of(small.seeded(_Positions), tmp_path)
    cuda = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes and devices alone: no accelerator is needed
        executor = Executor(
            task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=task.dynamic_batch, device=cuda
        )
        value = torch.zeros(3, 3, 16, 16, device=cuda)
        for unit in find_units(task.graph, task.plan):
            value = executor.run(unit, value, images=3)
            assert value.device == cuda
