"""Bounds on integer sums that hold for every input, from the weights and code ranges themselves.

Three questions per layer (numerics: float32(acc) is exact up to 2^24; kernels accumulate in int32; x64 without VNNI adds two
u8 x s8 products in saturating int16, VPMADDUBSW):

- can a sum leave int32?
- can a sum leave the range in which float32 holds every integer?
- can a pair of products leave int16?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

INT32_LIMIT = 2**31 - 1
FLOAT32_LIMIT = 2**24
INT16_LIMIT = 2**15 - 1


@dataclass(frozen=True, kw_only=True)
class SiteBound:
    """Bounds of one layer.

    Attributes:
        site: name of the layer's output.
        op: ONNX operator.
        products: products in one sum.
        smallest: smallest reachable sum, bias included.
        largest: largest reachable sum, bias included.
        magnitude: largest |sum| on the way there.
        pair: largest |sum| of two products of raw codes that stand next to each other, channels last; None for two u8 tensors.
        any_pair: the same over any two products of one sum, whatever order a kernel packs them in.
        fits_int32: no input makes a sum leave int32.
        exact_in_float32: no input makes a sum leave +-2^24.
        pair_safe: no pair can saturate int16, in any order.
    """

    site: str
    op: str
    products: int
    smallest: int
    largest: int
    magnitude: int
    pair: int | None
    any_pair: int | None
    fits_int32: bool
    exact_in_float32: bool
    pair_safe: bool


def layer_bound(*, site: str, op: str, weights: Int, bias: Int | None, low: int, high: int, zero_point: int) -> SiteBound:
    """Bound a layer with constant weights.

    Args:
        site: name of the layer's output.
        op: ONNX operator.
        weights: centred codes, output channels first: [O, C / groups, ...] or [O, K].
        bias: codes [O], None without one.
        low: smallest input code.
        high: largest input code.
        zero_point: of the input.

    Raises:
        ValueError: low is above high, or weights has fewer than two axes.
    """
    if low > high or weights.ndim < 2:
        raise ValueError(f"codes [{low}, {high}] and weights of shape {weights.shape}: low <= high and two axes are needed")
    flat = weights.reshape(weights.shape[0], -1).astype(np.int64)
    offset = np.zeros(len(flat), np.int64) if bias is None else bias.astype(np.int64)
    positive, negative = np.maximum(flat, 0).sum(axis=1), np.minimum(flat, 0).sum(axis=1)
    # Padding holds the zero point and adds nothing, so a tap may always be absent.
    up, down = max(high - zero_point, 0), min(low - zero_point, 0)
    largest = int((positive * up + negative * down + offset).max())
    smallest = int((positive * down + negative * up + offset).min())
    # Bias and products are added in the kernel's order: the partial sums lie in the same interval widened by the bias.
    reach = max(abs(largest), abs(smallest), int(np.abs(offset).max(initial=0)))
    last = flat if weights.ndim == 2 else np.moveaxis(weights, 1, -1).reshape(len(flat), -1)
    pair, any_pair = _adjacent_pair(last, low, high), _any_pair(flat, low, high)
    return SiteBound(
        site=site,
        op=op,
        products=flat.shape[1],
        smallest=smallest,
        largest=largest,
        magnitude=reach,
        pair=pair,
        any_pair=any_pair,
        fits_int32=reach <= INT32_LIMIT,
        exact_in_float32=reach <= FLOAT32_LIMIT,
        pair_safe=any_pair <= INT16_LIMIT,
    )


def product_bound(*, site: str, op: str, products: int, left: tuple[int, int, int], right: tuple[int, int, int]) -> SiteBound:
    """Bound a product of two code tensors.

    Args:
        site: name of the output.
        op: ONNX operator.
        products: length of the inner axis.
        left: (low, high, zero point) of the left codes.
        right: the same of the right codes.
    """
    corners = [(a - left[2]) * (b - right[2]) for a in left[:2] for b in right[:2]]
    smallest, largest = products * min(*corners, 0), products * max(*corners, 0)
    reach = max(abs(smallest), abs(largest))
    any_pair = 2 * max(abs(code) for code in left[:2]) * max(abs(code) for code in right[:2]) if right[0] < 0 else None
    return SiteBound(
        site=site,
        op=op,
        products=products,
        smallest=smallest,
        largest=largest,
        magnitude=reach,
        pair=any_pair,
        any_pair=any_pair,
        fits_int32=reach <= INT32_LIMIT,
        exact_in_float32=reach <= FLOAT32_LIMIT,
        # Only u8 x s8 pairs meet in VPMADDUBSW. Two u8 tensors are widened to 16 bits first (measured: equal with and without VNNI).
        pair_safe=any_pair is None or any_pair <= INT16_LIMIT,
    )


class Layer(Protocol):
    """The integers of one layer: weights with a bias, or two code tensors. Ranges are (low, high, zero point)."""

    @property
    def site(self) -> str:
        """Name of the layer's output."""
        ...

    @property
    def op(self) -> str:
        """ONNX operator."""
        ...

    @property
    def weights(self) -> Int | None:
        """Centred codes, output channels first."""
        ...

    @property
    def bias(self) -> Int | None:
        """Codes [O]."""
        ...

    @property
    def left(self) -> tuple[int, int, int]:
        """Range of the input codes."""
        ...

    @property
    def right(self) -> tuple[int, int, int] | None:
        """Range of the second code tensor."""
        ...

    @property
    def products(self) -> int:
        """Products in one sum."""
        ...


def prove(layers: Sequence[Layer], /) -> Mapping[str, Any]:
    """Bound every layer; see `as_proofs` for what comes back."""
    return as_proofs([_bound(layer) for layer in layers])


def _bound(layer: Layer) -> SiteBound:
    low, high, zero_point = layer.left
    if layer.weights is not None:
        return layer_bound(site=layer.site, op=layer.op, weights=layer.weights, bias=layer.bias, low=low, high=high, zero_point=zero_point)
    if layer.right is None:
        raise ValueError(f"layer {layer.site} has neither weights nor a second code tensor")
    return product_bound(site=layer.site, op=layer.op, products=layer.products, left=layer.left, right=layer.right)


def as_proofs(bounds: Sequence[SiteBound]) -> Mapping[str, Any]:
    """Plain data for the report: a summary, and every site's record."""
    worst = max(bounds, key=lambda bound: bound.magnitude, default=None)
    return {
        "int32_accumulators": {
            "holds": all(bound.fits_int32 for bound in bounds),
            "sites": len(bounds),
            "largest": 0 if worst is None else worst.magnitude,
            "largest_site": None if worst is None else worst.site,
            "limit": INT32_LIMIT,
        },
        "float32_exact_accumulators": _summary(bounds, "exact_in_float32", FLOAT32_LIMIT),
        "int16_pairs": _summary(bounds, "pair_safe", INT16_LIMIT),
        "sites": [asdict(bound) for bound in bounds],
    }


def _summary(bounds: Sequence[SiteBound], attribute: str, limit: int) -> Mapping[str, Any]:
    failing = [bound.site for bound in bounds if not getattr(bound, attribute)]
    return {"holds": not failing, "sites": len(bounds), "exceptions": failing, "limit": limit}


def _adjacent_pair(weights: Int, low: int, high: int) -> int:
    """Largest |a w_i + b w_(i+1)| over raw codes a, b in [low, high]."""
    up = np.where(weights > 0, weights * high, weights * low)
    down = np.where(weights > 0, weights * low, weights * high)
    if weights.shape[1] == 1:
        return int(max(up.max(), -down.min()))
    return int(max((up[:, :-1] + up[:, 1:]).max(), -(down[:, :-1] + down[:, 1:]).min(), up.max(), -down.min()))


def _any_pair(weights: Int, low: int, high: int) -> int:
    up = np.sort(np.where(weights > 0, weights * high, weights * low), axis=1)
    down = np.sort(np.where(weights > 0, weights * low, weights * high), axis=1)
    best, worst = up[:, -2:].sum(axis=1).max(), down[:, :2].sum(axis=1).min()
    return int(max(best, -worst, up.max(), -down.min()))
