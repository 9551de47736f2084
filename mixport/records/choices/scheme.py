"""What is asked of a quantisation: the scheme (w4a8, auto:0.10 ...) and the widths of edge layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from mixport.records.errors import BadOptionError

Role = Literal["input", "compute", "carrier", "table"]
"""Why a tensor has codes: model input; read by a layer or an attention product; branch that meets another;
table output.
"""

EdgeConvention = Literal["brecq", "qdrop", "vit"]
DEFAULT_EDGE_CONVENTION: EdgeConvention = "brecq"
EDGE_CONVENTIONS: Mapping[EdgeConvention, str] = MappingProxyType(
    {
        "brecq": (
            "weights of the first and the last layer, the first layer's result and the last layer's "
            "input at edge bits"
        ),
        "qdrop": "weights of the first and the last layer and the last layer's input at edge bits",
        "vit": "the first layer's input at edge bits, and no weights",
    }
)
"""What the edges are, as publications have it: BRECQ and GENIE; QDrop and PD-Quant; RepQ-ViT, APHQ-ViT and
others on transformers.
"""

AUTO_WIDTHS = (2, 3, 4, 6, 8)
"""Weight bits that a layer may get under a size budget."""

_SCHEME = re.compile(r"w([2-8])a([2-8])")
_AUTO = re.compile(
    r"auto:(?P<number>[0-9]{1,12}(\.[0-9]{1,12})?)(?P<unit>[kmg]i?b|b)?(:a(?P<activation>[2-8]))?"
)
_UNIT_BYTES = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_SPELLINGS = (
    "allowed wWaA with W and A from 2 to 8, auto:RATIO, auto:SIZE with B, KB, MB, KiB or MiB, and either "
    "with :aA"
)


@dataclass(frozen=True, kw_only=True)
class SizeBudget:
    """Bound on the size of the file that is written. One of the two is given.

    Attributes:
        size_bytes: largest size, in bytes.
        ratio: largest share of the float parameters' size (4 bytes each), above 0 and at most 1.
    """

    size_bytes: int | None = None
    ratio: float | None = None

    def limit(self, float_bytes: int) -> int:
        """Largest size in bytes, for a model whose float parameters take `float_bytes`."""
        return self.size_bytes if self.size_bytes is not None else int((self.ratio or 0.0) * float_bytes)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Bit widths of a whole model.

    Attributes:
        weight_bits: of every convolution and linear layer but the edges, 2 to 8; under a budget the fewest
            that one may get.
        activation_bits: of every compute input but the edges, 2 to 8.
        edge_bits: weights and compute inputs of the first and the last layer, 2 to 8.
        edge_convention: what else has edge_bits, or what has not, see EDGE_CONVENTIONS.
        carrier_bits: of tensors that meet at an add, a concat, a multiply or a pool.
        budget: size that the file must keep, each layer with weight bits of its own; None where all have the
            same.
        spelling: as it was asked for under a budget, e.g. auto:0.10; empty without one.
    """

    weight_bits: int
    activation_bits: int
    edge_bits: int = 8
    edge_convention: EdgeConvention = DEFAULT_EDGE_CONVENTION
    carrier_bits: int = 8
    budget: SizeBudget | None = None
    spelling: str = ""

    @property
    def convention(self) -> str:
        """Which of the published conventions the edges follow, and what it says."""
        return f"{self.edge_convention}: {EDGE_CONVENTIONS[self.edge_convention]}"

    @property
    def name(self) -> str:
        """Canonical spelling, e.g. w4a8; under a budget the one that was given."""
        return self.spelling or f"w{self.weight_bits}a{self.activation_bits}"

    @classmethod
    def parse(
        cls, text: str, *, edge_bits: int = 8, edge_convention: EdgeConvention = DEFAULT_EDGE_CONVENTION
    ) -> Scheme:
        """Read a scheme.

        Args:
            text: wWaA, or auto:SIZE or auto:SIZE:aA with SIZE a ratio of the float parameters' size (0.10),
                or a size in B, KB or MB (powers of 1000), KiB or MiB (powers of 1024), upper or lower case. A
                is 8 where it is not given.
            edge_bits: of the first and the last layer.
            edge_convention: what these bits hold for.

        Raises:
            BadOptionError: anything else; the message says what is allowed.
        """
        if not 2 <= edge_bits <= 8:
            raise BadOptionError(
                f"--edge-bits is {edge_bits}, allowed 2 to 8", hint="mixport build --edge-bits 8 ..."
            )
        plain = text.strip().lower()
        match = _SCHEME.fullmatch(plain)
        if match is not None:
            return cls(
                weight_bits=int(match[1]),
                activation_bits=int(match[2]),
                edge_bits=edge_bits,
                edge_convention=edge_convention,
            )
        match = _AUTO.fullmatch(plain)
        if match is None:
            raise BadOptionError(
                f"--scheme is {text!r}, {_SPELLINGS}", hint="mixport build --scheme w4a8 ..."
            )
        return cls(
            weight_bits=min(AUTO_WIDTHS),
            activation_bits=int(match["activation"] or 8),
            edge_bits=edge_bits,
            edge_convention=edge_convention,
            budget=_budget(text, float(match["number"]), match["unit"]),
            spelling=text.strip(),
        )

    def at(self, weight_bits: int) -> Scheme:
        """The same scheme with one weight width for all layers but the edges, and no budget."""
        return replace(self, weight_bits=weight_bits, budget=None, spelling="")


def _budget(text: str, number: float, unit: str | None) -> SizeBudget:
    if unit is not None:
        size = int(number * _UNIT_BYTES[unit])
        if size < 1:
            raise BadOptionError(
                f"--scheme is {text!r}: the size is {size} bytes, allowed 1 and more",
                hint="mixport build --scheme auto:80KB ...",
            )
        return SizeBudget(size_bytes=size)
    if not 0.0 < number <= 1.0:
        raise BadOptionError(
            (
                f"--scheme is {text!r}: a ratio is above 0 and at most 1, and a size has a unit: B, KB, "
                "MB, KiB or MiB"
            ),
            hint=f"mixport build --scheme auto:{number:g}KB ...",
        )
    return SizeBudget(ratio=number)
