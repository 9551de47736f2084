"""What is asked of a quantisation: the scheme (w4a8 ...), the widths of edge layers, and the parameters of one tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mixport.dtypes import STORAGE_RANGE, Storage
from mixport.errors import BadOptionError

Role = Literal["input", "compute", "carrier", "table"]
"""Why a tensor has codes: model input; read by a layer or an attention product; branch that meets another; table output."""

_SCHEME = re.compile(r"w([2-8])a([2-8])")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Bit widths of a whole model.

    Attributes:
        weight_bits: of every convolution and linear layer but the edges, 2 to 8.
        activation_bits: of every compute input but the edges, 2 to 8.
        edge_bits: weights and compute inputs of the first and the last layer, 2 to 8.
        carrier_bits: of tensors that meet at an add, a concat, a multiply or a pool.
        stream_bits: of residual streams that feed a normalisation kept in float (LayerNorm): 16, since 8 loses accuracy there.
    """

    weight_bits: int
    activation_bits: int
    edge_bits: int = 8
    carrier_bits: int = 8
    stream_bits: int = 16

    #: Which of the three published conventions the 8-bit set follows: first weight, last weight, last layer's input.
    CONVENTION = "qdrop: first weights, last weights and the last layer's input at edge bits"

    @property
    def name(self) -> str:
        """Canonical spelling, e.g. w4a8."""
        return f"w{self.weight_bits}a{self.activation_bits}"

    @classmethod
    def parse(cls, text: str, *, edge_bits: int = 8) -> Scheme:
        """Read wWaA. Raises BadOptionError naming what is allowed."""
        match = _SCHEME.fullmatch(text.strip().lower())
        if match is None:
            raise BadOptionError(f"--scheme is {text!r}, allowed wWaA with W and A from 2 to 8", hint="mixport build --scheme w4a8 ...")
        if not 2 <= edge_bits <= 8:
            raise BadOptionError(f"--edge-bits is {edge_bits}, allowed 2 to 8", hint="mixport build --edge-bits 8 ...")
        return cls(weight_bits=int(match[1]), activation_bits=int(match[2]), edge_bits=edge_bits)


@dataclass(frozen=True, kw_only=True)
class QuantParams:
    """Per-tensor affine quantisation: real = (code - zero_point) * scale.

    Attributes:
        scale: positive, a float32 value (held as a Python float that float32 represents exactly).
        zero_point: code of real 0; inside the storage type's range, and not always inside [qmin, qmax].
        qmin: smallest code the quantiser gives: saturation, or the lower bound of an absorbed Relu or Clip.
        qmax: largest code.
        storage: ONNX type that holds the codes.
    """

    scale: float
    zero_point: int
    qmin: int
    qmax: int
    storage: Storage

    def __post_init__(self) -> None:
        low, high = STORAGE_RANGE[self.storage]
        if not (low <= self.qmin < self.qmax <= high and low <= self.zero_point <= high):
            raise ValueError(f"codes [{self.qmin}, {self.qmax}] with zero point {self.zero_point} do not fit {self.storage}")
        if not self.scale > 0.0 or self.scale == float("inf"):
            raise ValueError(f"scale is {self.scale}, allowed positive and finite")

    @property
    def needs_clip(self) -> bool:
        """True when the codes' range is narrower than the storage type: an integer Clip follows QuantizeLinear."""
        return (self.qmin, self.qmax) != STORAGE_RANGE[self.storage]
