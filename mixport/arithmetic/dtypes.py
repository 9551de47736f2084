"""Integer types of codes: width and sign give the range, the storage type says what ONNX tensor holds
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Storage = Literal["uint8", "int8", "uint16", "int16", "int4", "int2", "int32"]

#: Range of every storage type: (smallest, largest).
STORAGE_RANGE: dict[str, tuple[int, int]] = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int4": (-8, 7),
    "int2": (-2, 1),
    "int32": (-(2**31), 2**31 - 1),
}


#: Bits that one value takes in a file: int4 and int2 values are packed.
STORAGE_BITS: dict[str, int] = {
    "uint8": 8,
    "int8": 8,
    "uint16": 16,
    "int16": 16,
    "int4": 4,
    "int2": 2,
    "int32": 32,
}


@dataclass(frozen=True, kw_only=True)
class IntType:
    """An integer code type.

    Attributes:
        bits: width, 2 to 32.
        signed: two's complement when True, else unsigned.
        narrow: drop the most negative code, so that the range is symmetric (signed types only).
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise ValueError(f"bits is {self.bits}, allowed 2 to 32")
        if self.narrow and not self.signed:
            raise ValueError("narrow range needs a signed type")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
