from __future__ import annotations

import pytest

from mixport.arithmetic.dtypes import STORAGE_RANGE, IntType


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (2, True, False, (-2, 1)),
        (2, True, True, (-1, 1)),
        (4, True, False, (-8, 7)),
        (4, False, False, (0, 15)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (32, True, False, (-(2**31), 2**31 - 1)),
    ],
)
def test_range_follows_width_and_sign(
    bits: int, signed: bool, narrow: bool, expected: tuple[int, int]
) -> None:
    kind = IntType(bits=bits, signed=signed, narrow=narrow)
    assert (kind.qmin, kind.qmax) == expected


@pytest.mark.parametrize("bits", [-1, 0, 1, 33])
def test_a_width_outside_2_to_32_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}, allowed 2 to 32"):
        IntType(bits=bits, signed=True)


def test_a_narrow_unsigned_type_is_refused() -> None:
    with pytest.raises(ValueError, match="narrow range needs a signed type"):
        IntType(bits=4, signed=False, narrow=True)


@pytest.mark.parametrize(
    ("storage", "bits", "signed"),
    [
        ("uint8", 8, False),
        ("int8", 8, True),
        ("uint16", 16, False),
        ("int16", 16, True),
        ("int4", 4, True),
        ("int2", 2, True),
        ("int32", 32, True),
    ],
)
def test_storage_ranges_are_those_of_the_integer_types(storage: str, bits: int, signed: bool) -> None:
    kind = IntType(bits=bits, signed=signed)
    assert STORAGE_RANGE[storage] == (kind.qmin, kind.qmax)


def test_every_storage_range_is_checked_above() -> None:
    assert set(STORAGE_RANGE) == {"uint8", "int8", "uint16", "int16", "int4", "int2", "int32"}
