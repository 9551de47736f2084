from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixport.quantize.reconstruction.execute import Executor
from mixport.quantize.reconstruction.units import find_units
from tests import reconstruction as small
from tests import structures
from tests.reconstruction import task_of


def executor_of(module: nn.Module, folder: Path) -> Executor:
    task, _ = task_of(module, folder)
    shape = task.input_shape
    return Executor(task.graph, task.plan, input_shape=shape, dynamic_batch=task.dynamic_batch, device=torch.device("cpu"))


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
    told = {node: executor.is_by_image(node) for node in nodes}
    assert {node.meta["shape"][0] for node, yes in told.items() if yes} >= {2, 8}
    assert told[nodes[-1]]
    tokens_first = executor_of(small.seeded(_TokensFirst), tmp_path)
    inner = [node for node in tokens_first.graph.graph.nodes if node.op == "call_function" and node.meta["shape"][:2] == (16, 2)]
    assert inner and not any(map(tokens_first.is_by_image, inner))


class _TokensFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.a, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(self.patch(x).flatten(2).permute(2, 0, 1))).mean(0))
