from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixport.model.programs.fx_graph import aten, constant
from mixport.quantize.channels.layernorms import level_layernorms
from mixport.quantize.graph.capture import Captured
from mixport.quantize.scales.ranges import ScaleRule
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision
from tests.unit.quantize.conftest import Capture

_RULE = ScaleRule()
Body = Callable[[nn.Module, Tensor], Tensor]


class Tokens(nn.Module):
    """Patches as tokens of 8 channels, a body, the mean of what it gives."""

    def __init__(self, body: Body, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.patch, self.body, self.head = nn.Conv2d(3, 8, 4, 4), body, nn.Linear(8, 10)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.body(self, tokens)).mean(1))


def uneven(norm: nn.LayerNorm) -> nn.LayerNorm:
    """Channels of very different width and place, one of negative gain, one that is constant."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        if norm.elementwise_affine:
            norm.weight.copy_(torch.exp(torch.randn(norm.weight.shape, generator=generator) * 1.5))
            norm.weight[0] *= -1
            norm.weight[1] = 0.0
            if norm.bias is not None:
                norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) * 3)
    return norm


def level(result: Captured, *, scheme: str = "w4a4") -> list[Decision]:
    """Level the norms of a captured graph on eight images; its logits must stay."""
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected: Tensor = result.graph(images)
        decisions = level_layernorms(
            result.graph, images.split(4), images=8, scheme=Scheme.parse(scheme), rule=_RULE
        )
        got: Tensor = result.graph(images)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    return decisions


def norm_outputs(result: Captured) -> list[Tensor]:
    """Rows that each norm gives on other images than those it was levelled on."""
    found: list[Tensor] = []

    class Tap(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target is aten.layer_norm.default:
                found.append(value.reshape(-1, value.shape[-1]))
            return value

    with torch.no_grad():
        Tap(result.graph).run(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(4)))
    return found


def attention(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    q, k, v = m.q(y), m.k(y), m.v(y)
    return x + torch.softmax(q @ k.transpose(1, 2), -1) @ v


def whole_and_split() -> nn.Module:
    """Three layers read one norm, one of them without a bias."""
    parts = {"q": nn.Linear(8, 8), "k": nn.Linear(8, 8, bias=False), "v": nn.Linear(8, 8)}
    return Tokens(attention, {"norm": uneven(nn.LayerNorm(8)), **parts})


def merged() -> nn.Module:
    """Patch merging: four tokens side by side, a norm, a layer without bias."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        square = x.reshape(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 4, 2, 5).reshape(-1, 4, 32)
        return m.reduction(m.norm(square))

    return Tokens(body, {"norm": uneven(nn.LayerNorm(32)), "reduction": nn.Linear(32, 8, bias=False)})


def windows() -> nn.Module:
    """Tokens rolled and cut into windows between the norm and the layer, as Swin does."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        grid = torch.roll(m.norm(x).reshape(-1, 4, 4, 8), (1, 1), (1, 2))
        cut = grid.reshape(-1, 2, 2, 2, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        return m.layer(cut).reshape(-1, 16, 8)

    return Tokens(body, {"norm": uneven(nn.LayerNorm(8)), "layer": nn.Linear(8, 8)})


def plain() -> nn.Module:
    """A norm with neither weight nor bias."""
    return Tokens(
        lambda m, x: m.layer(m.norm(x)),
        {"norm": nn.LayerNorm(8, elementwise_affine=False), "layer": nn.Linear(8, 8)},
    )


@pytest.mark.parametrize("make", [whole_and_split, merged, windows, plain])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w2a4"])
def test_the_function_stays_and_the_decision_says_what_was_done(
    captured: Capture, make: Callable[[], nn.Module], scheme: str
) -> None:
    torch.manual_seed(1)
    decisions = level(captured(make()), scheme=scheme)
    assert [d.where for d in decisions] == ["norm"]
    assert "channels shifted and divided by" in decisions[0].what


def test_channels_are_centred_and_their_ranges_no_further_apart(captured: Capture) -> None:
    torch.manual_seed(1)
    result = captured(whole_and_split())
    (before,) = norm_outputs(result)
    level(result, scheme="w8a4")
    (after,) = norm_outputs(result)
    live = before.std(0) > 0
    middle = (after.amax(0) + after.amin(0)) / 2
    assert float(middle[live].abs().max()) < 0.3 * float(after.abs().max())
    assert float(middle.abs().max()) < float(((before.amax(0) + before.amin(0)) / 2).abs().max())
    spread_before, spread_after = before.std(0)[live], after.std(0)[live]
    assert float(spread_after.max() / spread_after.min()) < 0.7 * float(
        spread_before.max() / spread_before.min()
    )


def test_constants_that_others_read_stay(captured: Capture) -> None:
    """One norm and one layer called twice: each call gets its own constants."""

    def twice(m: nn.Module, x: Tensor) -> Tensor:
        return m.layer(m.norm(m.layer(m.norm(x)) * 5.0 + 1.0))

    torch.manual_seed(1)
    result = captured(Tokens(twice, {"norm": uneven(nn.LayerNorm(8)), "layer": nn.Linear(8, 8)}))
    old = {node: constant(result.graph, node) for node in result.graph.graph.nodes if node.op == "get_attr"}
    kept = {node: value.clone() for node, value in old.items() if value is not None}
    assert len(level(result)) == 2
    norms = [node for node in result.graph.graph.nodes if node.target is aten.layer_norm.default]
    assert norms[0].args[2] is not norms[1].args[2]
    for node, value in kept.items():
        now = old[node]
        assert now is not None
        assert torch.equal(now, value)


def residual(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return y + m.layer(y)


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    return m.layer(torch.roll(m.norm(x), 1, -1))


def padded(m: nn.Module, x: Tensor) -> Tensor:
    return m.layer(torch.nn.functional.pad(m.norm(x), (0, 0, 0, 1)))


def regrouped(m: nn.Module, x: Tensor) -> Tensor:
    return m.layer(m.norm(x).transpose(1, 2).reshape(-1, 16, 8))


@pytest.mark.parametrize("channels", [5, 7])
def test_a_layer_that_reads_some_of_the_channels_is_declined(captured: Capture, channels: int) -> None:
    torch.manual_seed(1)
    parts = {"norm": uneven(nn.LayerNorm(8)), "layer": nn.Linear(channels, 8)}
    (decision,) = level(captured(Tokens(lambda m, x: m.layer(m.norm(x)[..., :channels]), parts)))
    assert decision.what == "channels keep their own ranges"
    assert "do not all reach the next layer" in decision.why


@pytest.mark.parametrize(
    ("body", "why"),
    [(residual, "add reads it too"), (shuffled, "in order"), (padded, "in order"), (regrouped, "in order")],
)
def test_what_would_change_the_function_is_declined(captured: Capture, body: Body, why: str) -> None:
    torch.manual_seed(1)
    (decision,) = level(captured(Tokens(body, {"norm": uneven(nn.LayerNorm(8)), "layer": nn.Linear(8, 8)})))
    assert decision.what == "channels keep their own ranges"
    assert why in decision.why


def test_a_model_without_norms_is_left_alone(captured: Capture) -> None:
    assert level(captured(Tokens(lambda m, x: m.layer(x), {"layer": nn.Linear(8, 8)}))) == []
