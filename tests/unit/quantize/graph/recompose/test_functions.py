"""Functions that decomposition spells out are one operator again; what only looks like one stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten
from mixport.quantize.graph.recompose.functions import recompose_functions
from tests.unit.quantize.conftest import operators
from tests.unit.quantize.graph.recompose.conftest import Rewritten

Body = Callable[[Tensor], Tensor]


class Function(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        # Beyond the bounds of hard functions, and beyond the 20 of a softplus.
        return self.body(x * 12.5)


FUNCTIONS: dict[str, Body] = {
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": nn.Softplus(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_one_operator_again(rewritten: Rewritten, name: str) -> None:
    assert operators(rewritten(Function(FUNCTIONS[name]), recompose_functions)) == {"mul": 1, name: 1}


def test_a_product_with_the_own_sigmoid_is_silu_in_either_order(rewritten: Rewritten) -> None:
    graph = rewritten(Function(lambda x: torch.sigmoid(x) * x), recompose_functions)
    assert operators(graph) == {"mul": 1, "silu": 1}


def test_what_others_read_of_the_parts_stays(rewritten: Rewritten) -> None:
    def body(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return torch.cat([x * gate, gate], 1)

    graph = rewritten(Function(body), recompose_functions)
    assert operators(graph) == {"mul": 1, "silu": 1, "sigmoid": 1, "cat": 1}


UNLIKE: dict[str, tuple[Body, str]] = {
    "sigmoid of another value": (lambda x: x * torch.sigmoid(x + 1), "silu"),
    "another bound": (lambda x: x * (x + 3).clamp(0).clamp(max=5) / 6, "hardswish"),
    "another shift": (lambda x: (x + 2).clamp(0).clamp(max=6) / 6, "hardsigmoid"),
    "another divisor": (lambda x: x * (x + 3).clamp(0).clamp(max=6) / 5, "hardswish"),
    "another slope": (lambda x: F.softplus(x, beta=2.0), "softplus"),
    "another threshold": (lambda x: F.softplus(x, threshold=10.0), "softplus"),
    "tanh of another softplus": (lambda x: x * torch.tanh(F.softplus(x, threshold=10.0)), "mish"),
}


@pytest.mark.parametrize(("body", "function"), UNLIKE.values(), ids=UNLIKE.keys())
def test_other_numbers_or_values_are_another_function(
    rewritten: Rewritten, body: Body, function: str
) -> None:
    before: Counter[str] = Counter()
    after = rewritten(Function(body), lambda graph: before.update(operators(graph)), recompose_functions)
    assert operators(after)[function] == 0 and operators(after) == before


@pytest.mark.parametrize(("shift", "axis"), [(1, 2), (-3, 3), (3, 1), (13, 2), (2, -1)])
def test_a_selection_that_goes_round_is_a_roll(rewritten: Rewritten, shift: int, axis: int) -> None:
    graph = rewritten(Function(lambda x: x.roll(shift, axis)), recompose_functions)
    assert operators(graph) == {"mul": 1, "roll": 1}
    (roll,) = (node for node in graph.graph.nodes if node.target is aten.roll.default)
    size = 3 if axis == 1 else 8
    assert [-amount % size for amount in roll.args[1]] == [-shift % size]


def test_a_roll_along_two_axes_is_two(rewritten: Rewritten) -> None:
    graph = rewritten(Function(lambda x: x.roll((1, -2), (2, 3))), recompose_functions)
    assert operators(graph) == {"mul": 1, "roll": 2}


@pytest.mark.parametrize(
    "index",
    [[2, 1, 0], [0, 1], [0, 1, 2, 0], [0, 0, 0], [1, 0, 2]],
    ids=["mirrored", "shorter", "longer", "one value", "swapped"],
)
def test_other_selections_stay(rewritten: Rewritten, index: list[int]) -> None:
    def body(x: Tensor) -> Tensor:
        return x.index_select(1, torch.tensor(index))

    found = operators(rewritten(Function(body), recompose_functions))
    assert (found["index_select"], found["roll"]) == (1, 0)


def test_a_selection_by_what_an_image_says_stays(rewritten: Rewritten) -> None:
    def body(x: Tensor) -> Tensor:
        return x.index_select(1, x.mean((0, 2, 3)).argsort())

    found = operators(rewritten(Function(body), recompose_functions))
    assert (found["index_select"], found["roll"]) == (1, 0)
