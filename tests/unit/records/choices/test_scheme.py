from __future__ import annotations

import pytest

from mixport.arithmetic.quant_params import QuantParams
from mixport.records.choices.scheme import Scheme, SizeBudget
from mixport.records.errors import BadOptionError


@pytest.mark.parametrize("text", ["w2a4", "w4a4", "w4a8", "w8a8", "w3a5"])
def test_a_scheme_reads_back_as_it_was_written(text: str) -> None:
    assert Scheme.parse(text).name == text


def test_a_scheme_is_read_without_regard_to_case_and_margins() -> None:
    assert Scheme.parse(" W4A8\n") == Scheme(weight_bits=4, activation_bits=8)


@pytest.mark.parametrize(
    "text", ["", "w4", "a8", "w1a8", "w9a8", "w4a1", "w4a16", "w4a8x", "int8", "w-4a8", "w\uff14a8"]
)
def test_other_spellings_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadOptionError, match="allowed wWaA with W and A from 2 to 8") as caught:
        Scheme.parse(text)
    assert caught.value.hint == "mixport build --scheme w4a8 ..."


@pytest.mark.parametrize(
    ("text", "budget", "activation_bits"),
    [
        ("auto:0.10", SizeBudget(ratio=0.1), 8),
        ("auto:1", SizeBudget(ratio=1.0), 8),
        ("auto:0.10:a4", SizeBudget(ratio=0.1), 4),
        ("auto:80KB", SizeBudget(size_bytes=80_000), 8),
        ("auto:80kb:a6", SizeBudget(size_bytes=80_000), 6),
        ("auto:80KiB", SizeBudget(size_bytes=81_920), 8),
        ("auto:1.5MB", SizeBudget(size_bytes=1_500_000), 8),
        ("auto:123456B", SizeBudget(size_bytes=123_456), 8),
    ],
)
def test_a_budget_is_a_ratio_or_a_size_with_a_unit(
    text: str, budget: SizeBudget, activation_bits: int
) -> None:
    scheme = Scheme.parse(f" {text} ")
    assert (scheme.budget, scheme.activation_bits, scheme.weight_bits, scheme.name) == (
        budget,
        activation_bits,
        2,
        text,
    )


@pytest.mark.parametrize(
    "text",
    [
        "auto",
        "auto:",
        "auto:KB",
        "auto:-1KB",
        "auto:80TB",
        "auto:1e3KB",
        "auto:0.1a4",
        "auto:0.1:a1",
        "auto:0.1:w4",
        "auto:\uff11KB",
    ],
)
def test_other_budgets_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadOptionError, match="auto:RATIO, auto:SIZE with B, KB, MB, KiB or MiB"):
        Scheme.parse(text)


@pytest.mark.parametrize("text", ["auto:80", "auto:0", "auto:0.0", "auto:1.01"])
def test_a_ratio_outside_0_to_1_is_refused_with_the_units_of_a_size(text: str) -> None:
    with pytest.raises(
        BadOptionError, match="a ratio is above 0 and at most 1, and a size has a unit"
    ) as caught:
        Scheme.parse(text)
    assert caught.value.hint is not None and "KB" in caught.value.hint


def test_a_size_below_one_byte_is_refused() -> None:
    with pytest.raises(BadOptionError, match="the size is 0 bytes, allowed 1 and more"):
        Scheme.parse("auto:0.4B")


def test_a_budget_has_a_limit_in_bytes() -> None:
    assert SizeBudget(ratio=0.1).limit(1001) == 100
    assert SizeBudget(size_bytes=80_000).limit(1001) == 80_000


def test_one_width_in_place_of_a_budget() -> None:
    assert Scheme.parse("auto:0.10:a4", edge_bits=6).at(3) == Scheme.parse("w3a4", edge_bits=6)


@pytest.mark.parametrize("edge_bits", [1, 9, -8])
def test_edge_bits_outside_2_to_8_are_refused(edge_bits: int) -> None:
    with pytest.raises(BadOptionError, match=f"--edge-bits is {edge_bits}, allowed 2 to 8"):
        Scheme.parse("w4a8", edge_bits=edge_bits)


def test_edge_bits_are_kept() -> None:
    assert Scheme.parse("w2a4", edge_bits=7).edge_bits == 7


def params(**changes: object) -> QuantParams:
    values: dict[str, object] = {"scale": 0.5, "zero_point": 0, "qmin": 0, "qmax": 255, "storage": "uint8"}
    return QuantParams(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"qmax": 256},
        {"qmin": -1},
        {"qmin": 15, "qmax": 15},
        {"qmin": 16, "qmax": 15},
        {"zero_point": 256},
        {"zero_point": -1},
        {"storage": "int8", "qmax": 255},
        {"storage": "int4", "qmin": -8, "qmax": 8},
    ],
)
def test_codes_that_do_not_fit_the_storage_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        params(**changes)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("inf"), float("-inf"), float("nan")])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="allowed positive and finite"):
        params(scale=scale)


def test_a_zero_point_may_lie_outside_the_saturated_range() -> None:
    assert params(zero_point=200, qmin=0, qmax=15).zero_point == 200
