"""Parameters of one quantised tensor: scale, zero point, the range of its codes and the type that holds
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixport.arithmetic.dtypes import STORAGE_RANGE, Storage


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
            raise ValueError(
                f"codes [{self.qmin}, {self.qmax}] with zero point {self.zero_point} do not fit "
                f"{self.storage}"
            )
        if not self.scale > 0.0 or self.scale == float("inf"):
            raise ValueError(f"scale is {self.scale}, allowed positive and finite")
