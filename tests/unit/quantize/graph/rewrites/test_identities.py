"""Operators that change no value are gone before quantisers are placed, however they are spelt; what only
looks like one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixport.quantize.graph.capture import capture
from tests.unit.quantize.conftest import operators

Body = Callable[[nn.Module, Tensor], Tensor]


class Between(nn.Module):
    """Convolution, some operators on [N, 4, 6, 6], convolution. Ones and zeros of every shape are at hand, as
    a model holds them.
    """

    def __init__(self, *bodies: Body) -> None:
        super().__init__()
        self.before, self.bodies, self.after = nn.Conv2d(3, 4, 1), bodies, nn.Conv2d(4, 4, 1)
        for name, shape in (
            ("scalar", ()),
            ("one", (1,)),
            ("channel", (4, 1, 1)),
            ("map", (1, 1, 6, 6)),
            ("whole", (1, 4, 6, 6)),
        ):
            self.register_parameter(f"{name}_ones", nn.Parameter(torch.ones(shape)))
            self.register_buffer(f"{name}_zeros", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for body in self.bodies:
            x = body(self, x)
        return self.after(x)


SPELLINGS: Mapping[str, Body] = MappingProxyType(
    {
        "x * 1": lambda m, x: x * 1,
        "1.0 * x": lambda m, x: 1.0 * x,
        "x + 0": lambda m, x: x + 0,
        "0 + x": lambda m, x: 0 + x,
        "x - 0.0": lambda m, x: x - 0.0,
        "x / 1": lambda m, x: x / 1,
        "x ** 1": lambda m, x: x**1,
        "scalar parameter": lambda m, x: x * m.scalar_ones + m.scalar_zeros,
        "parameter of one element": lambda m, x: m.one_ones * x + m.one_zeros,
        "channels": lambda m, x: x * m.channel_ones - m.channel_zeros,
        "a map": lambda m, x: m.map_zeros + x / m.map_ones,
        "every element": lambda m, x: x / m.whole_ones + m.whole_zeros,
        "what folds to ones": lambda m, x: x * (m.channel_zeros.exp() * m.one_ones),
        "made in forward": lambda m, x: x * torch.ones(4, 1, 1) + torch.zeros(6),
        "as many as images": lambda m, x: x * torch.ones_like(x) + torch.zeros(x.shape[0], 1, 1, 1),
        "expanded": lambda m, x: x + m.channel_zeros.expand(x.shape[0], -1, -1, -1),
        "alpha": lambda m, x: torch.add(x, m.one_zeros, alpha=3),
        "alpha 0": lambda m, x: torch.sub(x, 0, alpha=2),
        "power": lambda m, x: torch.pow(x, m.one_ones),
        "addcmul": lambda m, x: x + m.scalar_zeros * m.channel_ones,
        "concat of one": lambda m, x: torch.cat([x], 1),
        "mask that hides nothing": lambda m, x: x.masked_fill(torch.zeros(6, 6, dtype=torch.bool), -1.0),
        "where": lambda m, x: torch.where(torch.ones(6, 6, dtype=torch.bool), x, m.one_zeros),
        "where not": lambda m, x: torch.where(m.map_zeros.bool(), m.one_zeros, x),
        "cast": lambda m, x: x.to(torch.float32).type_as(m.one_ones),
    }
)


def check(module: nn.Module, size: int = 6) -> dict[str, int]:
    """Operators that are left; the values are those of the module, bit by bit: nothing is folded into these
    layers.
    """
    module = module.eval().requires_grad_(False)
    graph = capture(module, input_shape=(1, 3, size, size), dynamic_batch=True).graph
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(7))
    assert torch.equal(graph(x), module(x))
    return dict(operators(graph))


def test_every_spelling_is_dropped() -> None:
    assert check(Between(*SPELLINGS.values())) == {"conv2d": 2}


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(sorted(SPELLINGS)), min_size=2, max_size=5))
def test_identities_in_a_row_are_dropped(names: list[str]) -> None:
    assert check(Between(*(SPELLINGS[name] for name in names))) == {"conv2d": 2}


def test_what_is_dropped_is_said() -> None:
    model = Between(lambda m, x: m.scalar_ones * x).eval()
    (decision,) = capture(model, input_shape=(1, 3, 6, 6), dynamic_batch=True).decisions
    assert (decision.what, decision.why) == (
        "mul left out",
        "it gives back its operand: times 1, plus 0, or the like",
    )


LOOKALIKES: Mapping[str, tuple[Body, dict[str, int]]] = MappingProxyType(
    {
        "one factor differs": (
            lambda m, x: x * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0000001]),
            {"mul": 1},
        ),
        "another shape": (
            lambda m, x: x.mean((2, 3), keepdim=True) + m.map_zeros,
            {"global_average_pool": 1, "add": 1},
        ),
        "another type": (
            lambda m, x: (x * torch.ones(1, dtype=torch.float64)[None]).float(),
            {"mul": 1, "_to_copy": 1},
        ),
        "the other side of a difference": (lambda m, x: m.one_zeros - x, {"sub": 1}),
        "the other side of a quotient": (
            lambda m, x: m.one_ones / (x.abs() + 1),
            {"abs": 1, "add": 1, "div": 1},
        ),
        "twice": (lambda m, x: torch.add(m.one_zeros, x, alpha=2), {"add": 1}),
        "rounded": (lambda m, x: torch.div(x, 1, rounding_mode="floor"), {"div": 1}),
    }
)


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_only_looks_like_an_identity_stays(name: str) -> None:
    body, expected = LOOKALIKES[name]
    assert check(Between(body)) == {"conv2d": 2, **expected}


def test_a_value_that_then_meets_itself_is_one_operand() -> None:
    assert check(Between(lambda m, x: x * m.one_ones + x)) == {"conv2d": 2, "mul": 1}
