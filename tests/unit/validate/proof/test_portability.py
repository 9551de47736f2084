"""Portability classes: what decides each, and that the reason holds the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mixport.records.graph_facts import NodeFacts
from mixport.validate.proof.bounds import SumBound
from mixport.validate.proof.pairs import PairSums
from mixport.validate.proof.portability import LayerProof, portability_of
from mixport.validate.proof.requantise import RequantisationProof

LAYER = LayerProof(
    sums=SumBound(smallest=-5, largest=9, magnitude=9, stored=9),
    pairs=PairSums(largest=9, smallest=-5, broken=0, first=""),
    requantisation=RequantisationProof(
        method="enumerated", sums=1234567, wrong_thresholds=0, wrong_channels=0, wrong_sums=0
    ),
)


def judged(form: Any, *, layer: LayerProof | None = None, add: str = "", **fields: Any) -> tuple[str, str]:
    facts = NodeFacts(node="n", op="Op", site="s", form=form, **fields)
    return portability_of(facts, layer=layer, add=add)


def of_layer(**fields: Any) -> tuple[str, str]:
    return judged("layer", layer=replace(LAYER, **fields))


@pytest.mark.parametrize(
    ("form", "portability", "part"),
    [
        ("table", "exact by proof", "a table has every answer"),
        ("function", "exact by proof", "further from the boundary of two codes"),
        ("movement", "exact by proof", "moves values"),
        ("requantise", "exact by proof", "one IEEE multiplication and one IEEE division"),
        ("quantise", "exact by proof", "one IEEE division"),
        ("elementwise", "exact by proof", "correctly rounded IEEE operations"),
        ("average", "exact on measured runtimes", "a factor whose rounding the standard leaves open"),
        ("multiply", "exact on measured runtimes", "order differs between machines"),
        ("add", "exact by proof", "nothing to round"),
        ("float", "float", "a float operator that runtimes round differently"),
    ],
)
def test_forms_have_their_class(form: str, portability: str, part: str) -> None:
    found = judged(form)
    assert found[0] == portability and part in found[1]


def test_reasons_of_the_node_are_carried() -> None:
    assert judged("elementwise", reason="its codes are int16")[1].endswith(
        "; no integer operator, since its codes are int16"
    )
    assert judged("float", reason="Softmax is not portable") == ("float", "Softmax is not portable")
    assert judged("add", add="scale 0.3 is no multiple") == ("not portable", "scale 0.3 is no multiple")


@pytest.mark.parametrize("form", ["layer", "product"])
def test_a_proved_layer_says_how_many_sums(form: str) -> None:
    words = "all 1,234,567 sums fit, and requantise as in exact arithmetic"
    assert judged(form, layer=LAYER) == ("exact by proof", f"{words} (each computed)")
    assert LAYER.requantisation is not None
    thresholds = replace(LAYER, requantisation=replace(LAYER.requantisation, method="thresholds"))
    assert judged(form, layer=thresholds) == ("exact by proof", f"{words} (by its thresholds)")
    assert judged(form) == (
        "exact on measured runtimes",
        "integer sums of a length that the file leaves open",
    )


@pytest.mark.parametrize(
    ("magnitude", "stored", "fits"), [(2**31 - 1, 2**31 - 1, True), (2**31, 9, False), (9, 2**31, False)]
)
def test_sums_beyond_int32_come_first(magnitude: int, stored: int, fits: bool) -> None:
    sums = SumBound(smallest=0, largest=9, magnitude=magnitude, stored=stored)
    broken = PairSums(largest=40000, smallest=0, broken=1, first="channel 0")
    found = of_layer(sums=sums, pairs=LAYER.pairs if fits else broken)
    assert found[0] == ("exact by proof" if fits else "not portable")
    assert fits or found[1] == "sums reach 2147483648, beyond int32"


def test_broken_pairs_are_named() -> None:
    broken = PairSums(largest=40000, smallest=0, broken=2, first="channel 3, weights 0 and 1")
    assert of_layer(pairs=broken) == (
        "not portable",
        "x64 without VNNI saturates pairs of products (channel 3, weights 0 and 1)",
    )


@pytest.mark.parametrize(
    ("fields", "portability", "part"),
    [
        ({"finite": False}, "not portable", "overflows float32"),
        ({"wrong_thresholds": 3}, "exact on measured runtimes", "puts 3 steps between codes elsewhere"),
        ({"finite": False, "wrong_thresholds": 3}, "not portable", "overflows float32"),
    ],
)
def test_requantisation_decides_last(fields: dict[str, Any], portability: str, part: str) -> None:
    assert LAYER.requantisation is not None
    found = of_layer(requantisation=replace(LAYER.requantisation, **fields))
    assert found[0] == portability and part in found[1]


def test_float_outputs_rest_on_measurement() -> None:
    found = of_layer(requantisation=None)
    assert found[0] == "exact on measured runtimes" and "the kernel rounds first" in found[1]


UINT8 = ((0, 255), (0, 255), (0, 255))


@pytest.mark.parametrize(
    ("scales", "zero_points", "ranges", "proved"),
    [
        # Products are multiples of the output scale: nothing to round.
        ((0.25, 0.25, 0.0625), (3, 0, 3), UINT8, True),
        # Products times 1 / 64: every odd multiple of 32 is a tie.
        ((0.25, 0.25, 4.0), (0, 128, 5), UINT8, False),
        # The kernels of signed codes are others.
        ((0.25, 0.25, 0.0625), (3, 0, 3), ((-128, 127), *UINT8[1:]), False),
        # One input is constant, so that nothing is known of it.
        ((), (), (), False),
    ],
)
def test_a_multiply_is_proved_by_looking_at_every_product(
    scales: Any, zero_points: Any, ranges: Any, proved: bool
) -> None:
    found = judged("multiply", scales=scales, zero_points=zero_points, ranges=ranges)
    assert found[0] == ("exact by proof" if proved else "exact on measured runtimes")
    assert ("every product lies further" in found[1]) is proved
