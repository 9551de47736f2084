"""Which softmaxes are divided behind their product, what becomes of factors and offsets, and which range
scores get.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.algorithms.activations import choose_params
from mixport.quantize.kernel_forms.late_division import divide_after_product
from mixport.quantize.prepare import scale_rule
from mixport.quantize.scales.histograms import collect, within_reach
from mixport.quantize.sites.planner import make_plan
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target
from tests.unit.quantize.conftest import Capture, operators

TARGET = load_target("ort-cpu")


class Attention(nn.Module):
    """Tokens of patches; `attend` gets q, k, v of [N, 2, 16, 6]."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.patch, self.qkv, self.head, self.attend = (
            nn.Conv2d(3, 12, 4, 4),
            nn.Linear(12, 36),
            nn.Linear(12, 5),
            attend,
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(-1, 16, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(self.attend(q, k, v).transpose(1, 2).reshape(-1, 16, 12).mean(1))


_BIAS = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
_HIDDEN = torch.rand(16, 16, generator=torch.Generator().manual_seed(3)) < 0.4
_HIDDEN[torch.arange(16), torch.arange(16)] = False


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_BIAS)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~_HIDDEN)


def swin(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * 0.4) @ k.transpose(-2, -1) + _BIAS
    scores = scores.view(-1, 1, 2, 16, 16) + torch.where(_HIDDEN, -100.0, 0.0)
    return F.dropout(scores.view(-1, 2, 16, 16).softmax(-1), 0.1, training=False) @ v


def divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / 2.0).softmax(-1) @ v


def talking_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return (weights + weights.flip(1)) @ v


def other_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-2) @ v


def right_operand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (v.transpose(-2, -1) @ (q @ k.transpose(-2, -1)).softmax(-1)).transpose(-2, -1)


def moving_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) + k @ q.transpose(-2, -1)).softmax(-1) @ v


def turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (k @ q.transpose(-2, -1)).transpose(-2, -1).softmax(-1) @ v


def scores_read_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    return scores.softmax(-1) @ v + scores.mean(-1, keepdim=True)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def graph_of(
    captured: Capture, attend: Attend, *, portable: bool = True, bits: int = 8
) -> tuple[fx.GraphModule, list[str]]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        graph = captured(Attention(attend)).graph
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        before = graph(x)
    reasons = [
        decision.why
        for decision in divide_after_product(graph, TARGET if portable else TARGET.not_portable(), bits=bits)
    ]
    clean(graph)
    record_shapes(graph, torch.zeros(2, 3, 16, 16))
    with torch.no_grad():
        # Exact in real arithmetic; float32 sums are in another order.
        torch.testing.assert_close(graph(x), before, rtol=1e-4, atol=1e-6)
    return graph, reasons


@pytest.mark.parametrize(
    ("attend", "factor", "adds"),
    [(fused, 6**-0.5, 0), (biased, 6**-0.5, 1), (masked, 6**-0.5, 0), (swin, 0.4, 2), (divided, 0.5, 0)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_factor_goes_into_the_exponent(
    captured: Capture, attend: Callable[..., Tensor], factor: float, adds: int
) -> None:
    graph, reasons = graph_of(captured, attend)
    (numerators,) = (node for node in graph.graph.nodes if node.target is OPS.softmax_numerators.default)
    found = operators(graph)
    assert reasons == []
    assert numerators.args[1] == pytest.approx(factor)
    assert found["softmax"] == found["mul"] == 0 and found["div"] == 1 and found["sum"] == 1
    assert found["add"] == adds


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (talking_heads, "what reads it is not one matrix product"),
        (other_axis, "another axis"),
        (right_operand, "what reads it is not one matrix product"),
        (moving_mask, "kind add"),
        (scores_read_twice, "read by others"),
        (turned, "from one row to another"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_fit_keeps_its_softmax_and_says_why(
    captured: Capture, attend: Callable[..., Tensor], why: str
) -> None:
    graph, reasons = graph_of(captured, attend)
    assert operators(graph)["softmax"] == 1
    (reason,) = reasons
    assert why in reason


def test_a_target_that_is_not_portable_keeps_every_softmax(captured: Capture) -> None:
    graph, reasons = graph_of(captured, fused, portable=False)
    assert operators(graph)["softmax"] == 1 and reasons == []


def test_narrow_probabilities_keep_a_scale_of_their_own(captured: Capture) -> None:
    graph, reasons = graph_of(captured, fused, bits=4)
    assert operators(graph)["softmax"] == 1
    assert reasons == ["probabilities of 4 bits do better with a scale of their own"]


@pytest.mark.parametrize(("scheme", "bits"), [("w8a8", 8), ("w4a4", 4)])
def test_scores_have_eight_bits_and_numerators_those_of_the_scheme(
    captured: Capture, scheme: str, bits: int
) -> None:
    graph, _ = graph_of(captured, fused)
    plan = make_plan(graph, Scheme.parse(scheme), stream_bits=16)
    sites = {site.name: site for site in plan.sites}
    scores, numerators, product = sites["matmul"], sites["softmax"], sites["matmul_2"]
    assert (scores.bits, scores.role, scores.reach) == (
        8,
        "carrier",
        pytest.approx(math.log(2 * 2**bits) * 6**0.5),
    )
    assert (numerators.bits, numerators.role) == (bits, "compute")
    assert numerators.fixed is not None
    assert (numerators.fixed.scale, numerators.fixed.zero_point, numerators.fixed.qmax) == (
        2.0**-bits,
        0,
        2**bits - 1,
    )
    assert product.op == "matmul" and product.tensor.target is aten.div.Tensor
    assert not any("sum" in decision.what or "div" in decision.what for decision in plan.decisions)


def test_masked_scores_do_not_widen_the_range(captured: Capture) -> None:
    for attend in (masked, swin):
        graph, _ = graph_of(captured, attend)
        plan = make_plan(graph, Scheme.parse("w8a8"), stream_bits=16)
        (site,) = (one for one in plan.sites if one.reach is not None)
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        reaches = {one.tensor: one.reach for one in plan.sites if one.reach is not None}
        ((_, observers),) = collect(
            graph, {one.tensor: one.name for one in plan.sites}, [images], reaches=reaches
        )
        histograms = {one.name: observers[one.tensor].result() for one in plan.sites}
        seen = histograms[site.name]
        assert seen.high - seen.low < site.reach + 2 * max(abs(seen.high), 0.1)
        params = choose_params(plan, histograms, scale_rule(TARGET))
        assert 255 * params[site.name].scale < site.reach + 2 * max(abs(seen.high), 0.1)
        assert params["softmax"].scale == 2.0**-8


def test_values_within_reach_of_the_largest_of_their_row() -> None:
    inf = float("inf")
    x = torch.tensor([[1.0, -5.0, -inf], [-inf, -inf, -inf], [0.0, -3.0, -100.0]])
    assert within_reach(x, 4.0).tolist() == [[1.0, -3.0, -3.0], [0.0, 0.0, 0.0], [0.0, -3.0, -4.0]]
