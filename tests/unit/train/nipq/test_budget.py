"""Budgets: spellings, what they are counted in, and the loss that pulls towards them."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mixport.records.errors import BadOptionError
from mixport.train.nipq.budget import Budget, Costs, Product, average, bit_operations, excess, parts

TWO = Costs(weights=(30, 10), activations=(6,), macs=(100, 200), reads=(-1, 0), read_bits=(8, 4))
"""Two layers: the first reads 8 bits of the image, the second one the only free site."""


def pull(budget: str, weights: list[float], activations: list[float], costs: Costs = TWO) -> float:
    return float(excess(Budget.parse(budget), costs, torch.tensor(weights), torch.tensor(activations)))


def smooth(difference: float) -> float:
    """Smooth L1 with a corner at 0.1 bits."""
    size = abs(difference)
    return 5.0 * size * size if size < 0.1 else size - 0.05


@pytest.mark.parametrize(
    ("text", "weight_bits", "activation_bits", "size_bytes", "bops"),
    [
        ("w3a4", 3.0, 4.0, None, None),
        (" W2.5A4 ", 2.5, 4.0, None, None),
        ("w2a8", 2.0, 8.0, None, None),
        ("90KB", None, 8.0, 90_000, None),
        ("90KB:a4", None, 4.0, 90_000, None),
        ("1.5KiB:a2.5", None, 2.5, 1536, None),
        ("123b", None, 8.0, 123, None),
        ("2mb", None, 8.0, 2_000_000, None),
        ("1.5GBOP", None, None, None, 1.5e9),
        ("20mbops", None, None, None, 2e7),
        ("7bop", None, None, None, 7.0),
    ],
)
def test_spellings(
    text: str,
    weight_bits: float | None,
    activation_bits: float | None,
    size_bytes: int | None,
    bops: float | None,
) -> None:
    assert Budget.parse(text) == Budget(
        text=text.strip().lower(),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        size_bytes=size_bytes,
        bops=bops,
    )


@pytest.mark.parametrize(
    "text",
    ["", "w3", "a4", "w3a", "3a4", "w-3a4", "90", "90XB", "90KB:4", "90KB:a", "GBOP", "1e9bop", "w3a4 w3a4"],
)
def test_other_spellings_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadOptionError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert message.startswith(f"--budget is {text!r}, allowed ")
    for spelling in ("w3a4", "w2.5a4", "from 2 to 8", "90KB:a4", "1.5GBOP"):
        assert spelling in message


@pytest.mark.parametrize(
    ("text", "bits"), [("w1a4", "1"), ("w1.9a4", "1.9"), ("w3a9", "9"), ("w3a8.5", "8.5"), ("90KB:a1", "1")]
)
def test_averages_that_no_width_gives_are_refused(text: str, bits: str) -> None:
    with pytest.raises(BadOptionError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert (
        f"--budget is {text!r}: an average is {bits} bits, allowed " in message and "from 2 to 8" in message
    )


def test_bit_operations_by_hand() -> None:
    found = bit_operations(TWO, torch.tensor([3.0, 5.0]), torch.tensor([6.0]))
    assert float(found) == 100 * 3 * 8 + 200 * 5 * 6
    alone = Costs(weights=(30,), activations=(), macs=(100,), reads=(-1,), read_bits=(7,))
    assert float(bit_operations(alone, torch.tensor([3.0]), torch.zeros(0))) == 100 * 3 * 7


def test_a_product_of_activations_counts_both_widths() -> None:
    attention = replace(TWO, products=(Product(macs=50, reads=(0, -1), read_bits=(8, 7)),))
    found = bit_operations(attention, torch.tensor([3.0, 5.0]), torch.tensor([6.0]))
    assert float(found) == 100 * 3 * 8 + 200 * 5 * 6 + 50 * 6 * 7
    both = replace(TWO, products=(Product(macs=50, reads=(0, 0), read_bits=(8, 8)),))
    bits = torch.tensor([6.0], requires_grad=True)
    bit_operations(both, torch.tensor([3.0, 5.0]), bits).backward()
    assert bits.grad is not None and float(bits.grad) == 200 * 5 + 2 * 50 * 6


def test_an_average_is_weighted() -> None:
    assert average([2.0, 4.0, 8.0], [3, 1, 0]) == 2.5
    assert average([8.0], [0]) is None and average([], []) is None


def test_at_the_budget_nothing_pulls() -> None:
    assert pull("w3.5a4", [3.0, 5.0], [4.0]) == 0.0
    assert pull(f"{100 * 24 + 200 * 20}bop", [3.0, 5.0], [4.0]) == 0.0
    # 30 * 4 + 10 * 8 bits are 25 bytes.
    assert pull("25b:a4", [4.0, 8.0], [4.0]) == 0.0


@pytest.mark.parametrize("bits", [2.0, 3.0, 3.45, 3.55, 4.0, 7.0])
def test_averages_pull_by_bits_both_ways(bits: float) -> None:
    # float32 near 10
    assert pull("w3.5a4", [bits, bits], [4.0]) == pytest.approx(smooth(bits - 3.5), abs=1e-5)
    assert pull("w3a3.5", [3.0, 3.0], [bits]) == pytest.approx(smooth(bits - 3.5), abs=1e-5)


def test_parts_add_up() -> None:
    # 30 * 5 + 10 * 3 is 4.5 bits on average.
    assert pull("w3a4", [5.0, 3.0], [6.0]) == pytest.approx(smooth(1.5) + smooth(2.0), abs=1e-5)


def test_a_size_counts_the_rest_of_the_file() -> None:
    costs = Costs(
        weights=(30, 10), activations=(), macs=(1, 1), reads=(-1, -1), read_bits=(8, 8), fixed_bytes=7
    )
    # 40 weights at 4 bits are 20 bytes, and one bit everywhere is 5.
    assert pull("17b", [4.0, 4.0], [], costs) == pytest.approx(smooth((20 + 7 - 17) / 5), abs=1e-5)


def test_bit_operations_pull_by_eighths_of_what_is_spent() -> None:
    spent = 100 * 3 * 8 + 200 * 5 * 6
    found = pull(f"{spent - 1000}bop", [3.0, 5.0], [6.0])
    assert found == pytest.approx(smooth(8 * 1000 / spent), rel=1e-5)


def test_it_pulls_widths_down_above_and_up_below() -> None:
    for start, sign in ((5.0, 1.0), (2.0, -1.0)):
        weights, sites = torch.full((2,), start).requires_grad_(), torch.full((1,), start).requires_grad_()
        for text in ("w3a3", f"{(100 * 8 + 200 * 3) * 3}bop"):
            weights.grad = sites.grad = None
            excess(Budget.parse(text), TWO, weights, sites).backward()
            assert weights.grad is not None and sites.grad is not None
            assert torch.equal(weights.grad.sign(), torch.full((2,), sign))
            assert torch.equal(sites.grad.sign(), torch.full((1,), sign))


def test_a_layer_pulls_by_its_number_of_weights() -> None:
    weights = torch.tensor([5.0, 5.0]).requires_grad_()
    excess(Budget.parse("w3a4"), TWO, weights, torch.tensor([4.0])).backward()
    assert weights.grad is not None and weights.grad.tolist() == pytest.approx([0.75, 0.25], rel=1e-6)


def test_what_is_fixed_does_not_count() -> None:
    fixed = Costs(weights=(0, 0), activations=(0,), macs=(1, 1), reads=(-1, 0), read_bits=(8, 8))
    assert pull("w2a2", [8.0, 8.0], [8.0], fixed) == 0.0
    assert pull("1b:a2", [8.0, 8.0], [8.0], fixed) == 0.0
    half = Costs(weights=(0, 10), activations=(0,), macs=(1, 1), reads=(-1, 0), read_bits=(8, 8))
    assert pull("w2a2", [8.0, 2.0], [8.0], half) == 0.0


def test_parts_say_what_they_bound() -> None:
    def names(text: str) -> list[str]:
        found = parts(Budget.parse(text), TWO, torch.tensor([3.0, 3.0]), torch.tensor([3.0]))
        return [name for name, *_ in found]

    assert names("w3a4") == ["weights", "activations"]
    assert names("90KB") == ["weights", "activations"]
    assert names("1GBOP") == ["both"]
