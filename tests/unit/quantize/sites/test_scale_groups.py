"""Which carriers share a scale, which may take a multiple of it, and which share their zero point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixport.quantize.sites.code_flow import CodeFlow
from mixport.quantize.sites.planner import make_plan
from mixport.quantize.sites.scale_groups import scale_groups
from mixport.records.choices.scheme import Scheme
from tests.unit.quantize.conftest import Capture

Body = Callable[["Net", Tensor], Tensor]
Group = tuple[list[str], list[str], list[tuple[str, ...]]]


class Net(nn.Module):
    """Convolutions a to f of 4 channels, and one behind all that gives the output."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.stem = body, nn.Conv2d(3, 4, 1)
        self.a, self.b, self.c, self.d, self.e, self.f = (nn.Conv2d(4, 4, 1) for _ in range(6))
        self.wide, self.last, self.norm = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.stem(x)).flatten(1)


def groups(captured: Capture, body: Body, *, portable: bool = True) -> list[Group]:
    """(members, leaves, sets of one zero point), each sorted, in the order of the groups."""
    graph = captured(Net(body)).graph
    plan = make_plan(graph, Scheme.parse("w8a8"), stream_bits=16)
    found = scale_groups(CodeFlow(graph), plan.sites, portable=portable)
    equal = [[tuple(sorted(names)) for names in group.equal_zero_point] for group in found]
    return [(sorted(one.members), sorted(one.leaves), sets) for one, sets in zip(found, equal, strict=True)]


def chain(net: Net, x: Tensor) -> Tensor:
    return net.last(net.a(x))


def residual(net: Net, x: Tensor) -> Tensor:
    x = torch.relu(x + net.a(x))
    x = torch.relu(x + net.b(x))
    return net.last(x)


def apart(net: Net, x: Tensor) -> Tensor:
    y = net.a(x) + net.b(x)
    z = net.c(y)
    return net.last(net.d(z) + net.e(z))


def concat(net: Net, x: Tensor) -> Tensor:
    return net.wide(torch.cat([net.a(x), net.b(x)], 1))


def added_and_joined(net: Net, x: Tensor) -> Tensor:
    a, b = net.a(x), net.b(x)
    return net.wide(torch.cat([a, b], 1)) + net.c(b + net.d(x))


def overlapping(net: Net, x: Tensor) -> Tensor:
    a, b, c = net.a(x), net.b(x), net.c(x)
    return net.wide(torch.cat([a, b], 1)) * net.wide(torch.cat([b, c], 1))


def concat_of_a_concat(net: Net, x: Tensor) -> Tensor:
    inner = torch.cat([net.a(x)[:, :2], net.b(x)[:, :2]], 1)
    return net.wide(torch.cat([inner, net.c(x)], 1))


def moved(net: Net, x: Tensor) -> Tensor:
    return net.last(net.a(x).transpose(2, 3) + net.b(x).roll(1, 2))


def twice(net: Net, x: Tensor) -> Tensor:
    a = net.a(x)
    return net.last(a + a.roll(1, 2))


def stream(net: Net, x: Tensor) -> Tensor:
    y = net.a(x) + net.b(x)
    return net.last(net.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


PORTABLE: dict[str, tuple[Body, list[Group]]] = {
    "chain": (chain, []),
    "blocks": (residual, [(["a", "add", "add_2", "b", "stem"], ["a", "b", "stem"], [])]),
    "two sums": (apart, [(["a", "add", "b"], ["a", "b"], []), (["add_2", "d", "e"], ["d", "e"], [])]),
    "concat": (concat, [(["a", "b"], [], [("a", "b")])]),
    "overlapping concats": (overlapping, [(["a", "b", "c"], [], [("a", "b", "c")])]),
    "concat of a concat": (concat_of_a_concat, [(["a", "b", "c"], [], [("a", "b", "c")])]),
    "moved": (moved, [(["a", "add", "b"], ["a", "b"], [])]),
    "one operand twice": (twice, [(["a", "add"], ["a"], [])]),
    "stream": (stream, []),
}


@pytest.mark.parametrize(("body", "expected"), PORTABLE.values(), ids=PORTABLE.keys())
def test_sums_and_concats_tie_their_operands(captured: Capture, body: Body, expected: list[Group]) -> None:
    assert groups(captured, body) == expected


def test_an_operand_of_a_concat_takes_no_multiple_in_its_sum(captured: Capture) -> None:
    first, second = groups(captured, added_and_joined)
    assert first == (["a", "add", "b", "d"], ["d"], [("a", "b")])
    assert second == (["add_2", "c", "wide"], ["c", "wide"], [])


@pytest.mark.parametrize("body", [residual, apart, moved, twice, stream])
def test_sums_that_need_not_be_portable_tie_nothing(captured: Capture, body: Body) -> None:
    assert groups(captured, body, portable=False) == []


def test_concats_tie_their_operands_on_every_target(captured: Capture) -> None:
    assert groups(captured, concat, portable=False) == [(["a", "b"], [], [("a", "b")])]
    assert groups(captured, added_and_joined, portable=False) == [(["a", "b"], [], [("a", "b")])]


def test_members_stand_in_the_order_in_which_the_graph_meets_them(captured: Capture) -> None:
    graph = captured(Net(residual)).graph
    plan = make_plan(graph, Scheme.parse("w8a8"), stream_bits=16)
    (group,) = scale_groups(CodeFlow(graph), plan.sites, portable=True)
    assert group.members == ("add", "stem", "a", "add_2", "b")
