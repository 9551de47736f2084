"""What lies between a product and its softmax, and the same scores without their factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from mixport.model.programs.fx_graph import aten, call, clean, tensor_arg
from mixport.quantize.kernel_forms.score_chain import ScoreChain, keeps_rows, score_chain, unscaled
from mixport.quantize.sites.code_flow import CodeFlow
from tests.unit.quantize.conftest import Capture

Body = Callable[[Tensor, Tensor], Tensor]
BIAS = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
HIDDEN = torch.ones(16, 16, dtype=torch.bool).triu(1)
INF = float("inf")


class Scores(nn.Module):
    """`body` makes scores [N, 16, 16] of q and k, [N, 16, 6]; the softmax of them is the output."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.patch, self.qk, self.body = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 12), body

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(self.patch(x).flatten(2).transpose(1, 2)).chunk(2, -1)
        return self.body(q, k.transpose(1, 2)).softmax(-1)


def found(captured: Capture, body: Body) -> tuple[fx.GraphModule, fx.Node, ScoreChain | str]:
    graph = captured(Scores(body)).graph
    (softmax,) = (node for node in graph.graph.nodes if node.target is aten.softmax.int)
    return graph, softmax, score_chain(graph, CodeFlow(graph), softmax)


def swin(q: Tensor, k: Tensor) -> Tensor:
    return ((q @ k * 0.5 + BIAS).unsqueeze(1) + BIAS.t()).reshape(-1, 16, 16)


#: Body, names of the steps, the product of their factors.
CHAINS: dict[str, tuple[Body, list[str], float]] = {
    "nothing": (lambda q, k: q @ k, [], 1.0),
    "factor": (lambda q, k: q @ k * 0.25, ["mul"], 0.25),
    "divisor": (lambda q, k: q @ k / 4.0, ["div"], 0.25),
    "offset": (lambda q, k: q @ k + BIAS, ["add"], 1.0),
    "factor, offset": (lambda q, k: q @ k * 0.25 + BIAS, ["mul", "add"], 0.25),
    "offset, factor": (lambda q, k: (q @ k + BIAS) * 0.25, ["add", "mul"], 0.25),
    "two of each": (
        lambda q, k: ((q @ k / 2.0 + BIAS) * 0.25 + BIAS.t()) * 3.0,
        ["div", "add", "mul", "add", "mul"],
        0.375,
    ),
    "mask": (lambda q, k: (q @ k * 0.25).masked_fill(HIDDEN, -9.0), ["mul", "masked_fill"], 0.25),
    "mask, factor": (lambda q, k: (q @ k).masked_fill(HIDDEN, -INF) * 0.25, ["masked_fill", "mul"], 0.25),
    "movement of rows": (swin, ["mul", "add", "unsqueeze", "add", "reshape"], 0.5),
}


@pytest.mark.parametrize(("body", "steps", "factor"), CHAINS.values(), ids=CHAINS.keys())
def test_steps_are_found_in_order_and_factors_taken_out(
    captured: Capture, body: Body, steps: list[str], factor: float
) -> None:
    graph, softmax, chain = found(captured, body)
    assert isinstance(chain, ScoreChain) and chain.base.target is aten.matmul.default
    assert [str(step.target).split(".")[1] for step in chain.steps] == steps
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = graph(x)
    sums, taken = unscaled(graph, chain, before=softmax)
    assert taken == factor
    # Exact in real arithmetic: the softmax of the sums times the factor is what it was.
    scaled = call(graph, aten.mul.Tensor, sums, taken, before=softmax, like=softmax)
    softmax.args = (scaled, *softmax.args[1:])
    clean(graph)
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-6)
    left = [node.target for node in graph.graph.nodes if node is not scaled]
    assert aten.mul.Tensor not in left and aten.div.Tensor not in left


def test_scores_without_steps_are_the_base_itself(captured: Capture) -> None:
    graph, softmax, chain = found(captured, CHAINS["nothing"][0])
    assert isinstance(chain, ScoreChain)
    count = len(graph.graph.nodes)
    assert unscaled(graph, chain, before=softmax) == (chain.base, 1.0)
    assert len(graph.graph.nodes) == count


def test_an_offset_in_front_of_every_factor_is_read_as_it_is(captured: Capture) -> None:
    graph, softmax, chain = found(captured, CHAINS["offset, factor"][0])
    assert isinstance(chain, ScoreChain)
    sums, _ = unscaled(graph, chain, before=softmax)
    assert sums.args[1] is chain.steps[0].args[1]


#: Body, and what is said.
REFUSED: dict[str, tuple[Body, str]] = {
    "read by others": (
        lambda q, k: torch.cat([(y := q @ k * 0.25), y.exp()], 1),
        "its scores come from an operator of kind concat, which shares its codes with others",
    ),
    "turned": (lambda q, k: (q @ k).transpose(1, 2), "its scores are moved from one row to another"),
    "cut": (lambda q, k: (q @ k)[..., :8], "its scores are moved from one row to another"),
    "of two values": (
        lambda q, k: q @ k + (q @ k).sigmoid(),
        "its scores come from an operator of kind add, which shares its codes with others",
    ),
    "negative factor": (
        lambda q, k: q @ k * -0.25,
        "its scores come from an operator of kind unary, which shares its codes with others",
    ),
}


@pytest.mark.parametrize(("body", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_other_scores_say_why_they_have_no_codes(captured: Capture, body: Body, why: str) -> None:
    assert found(captured, body)[2] == why


def test_a_product_that_others_read_has_no_codes_of_its_own(captured: Capture) -> None:
    def body(q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k
        return scores * 0.25 + scores.mean().detach() * 0

    graph, softmax, _ = found(captured, body)
    product = next(node for node in graph.graph.nodes if node.target is aten.matmul.default)
    softmax.args = (product, *softmax.args[1:])
    assert score_chain(graph, CodeFlow(graph), softmax) == "its scores are read by others, too"


@pytest.mark.parametrize(
    ("body", "keeps"),
    [
        (lambda q, k: (q @ k).unsqueeze(1), True),
        (lambda q, k: (q @ k).reshape(-1, 2, 8, 16), True),
        (lambda q, k: (q @ k).reshape(-1, 32, 8), False),
        (lambda q, k: (q @ k).transpose(1, 2), False),
    ],
    ids=["a new axis", "rows regrouped", "rows cut", "turned"],
)
def test_rows_are_kept_where_the_last_axis_is(captured: Capture, body: Body, keeps: bool) -> None:
    _, softmax, _ = found(captured, body)
    moved = tensor_arg(softmax, 0)
    assert keeps_rows(moved, 16) is keeps
    assert not keeps_rows(moved, 15)
