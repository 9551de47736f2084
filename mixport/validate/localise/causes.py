"""Why a runtime may give another value than the exact one: causes told apart by recomputing what each would
give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.records.validation_report import Cause
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.graph import Array
from mixport.validate.localise.element import Element

#: A value counts as near a tie when it lies this close to the middle of two codes. float32 arithmetic on sums
#: below 2^24 errs by
#: far less; scales that are one unit in the last place off err by 255 * 2^-23 at most.
NEAR_TIE = 1e-3

_INT16_MIN, _INT16_MAX = -(2**15), 2**15 - 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cause with its sentence and its repair."""

    cause: Cause
    explanation: str
    repair: str


def refused(message: str) -> Finding:
    """The runtime did not load or run the model."""
    return Finding(
        cause="refused",
        explanation=f"the runtime refuses the model: {message}",
        repair="build for a target that this runtime can load",
    )


def wrong_shape(expected: int, got: int) -> Finding:
    """A tensor that is missing or has another shape: sizes are given."""
    return Finding(
        cause="shape",
        explanation=f"the tensor has {got} values instead of {expected}"
        if got != expected
        else f"its {got} values come in another shape",
        repair="check that the runtime runs this very file, with this batch size",
    )


def find_cause(
    unit: FusedUnit,
    element: Element,
    *,
    expected: float,
    got: float,
    tensors: tuple[Array, Array] | None,
    index: tuple[int, ...],
) -> Finding:
    """The likeliest cause of one wrong element.

    Args:
        unit: the operator.
        element: what the value is made of.
        expected: exact value.
        got: the runtime's.
        tensors: the whole tensor, expected and got.
        index: position in it.
    """
    saturated = _saturation(unit, element, got)
    near = unit.saturation is not None and abs(got - expected) == 1 and _tie_distance(element) <= NEAR_TIE
    # A pair that can saturate explains a value that it gives; other values only where no tie does.
    if saturated is not None and (saturated.certain or not near):
        return saturated.finding
    swapped = _swapped_channel(*tensors, index) if tensors is not None else None
    if swapped is not None:
        return swapped
    if abs(got - expected) == 1 and unit.saturation is not None:
        return _one_code(unit, element, got)
    if unit.saturation is None:
        return Finding(
            cause="unfused-float",
            explanation=(
                "the exact integer sum times one float32 scale gives the expected value: this runtime "
                "sums floats"
            ),
            repair="quantise this output, or compare its integer inputs only",
        )
    return Finding(
        cause="other-data",
        explanation=(
            f"a difference of {abs(got - expected):g} codes is no rounding: weights, bias, scale or "
            "order of the data are others"
        ),
        repair="check that the runtime runs this very file (its SHA-256), and the layout of its inputs",
    )


def float_operators(names: tuple[str, ...], *, difference: float) -> Finding:
    """A quantiser that rounds what float operators gave."""
    if not names:
        return Finding(
            cause="other-data",
            explanation=(
                "no arithmetic stands between this tensor and the codes it is made of: the data or their "
                "order are others"
            ),
            repair="check that the runtime runs this very file (its SHA-256), and the layout of its inputs",
        )
    listed = ", ".join(names[:6])
    return Finding(
        cause="float-operators",
        explanation=(
            f"the codes round what float operators give ({listed}), off by {difference:g}; runtimes "
            "compute these differently"
        ),
        repair=(
            "write this part as integer or table operators, or accept it as a float island outside the claim"
        ),
    )


def fused_add(where: str) -> Finding:
    """One code of difference in an add; `where` says how far from a tie, empty where that is not known."""
    return Finding(
        cause="fused-multiply-add",
        explanation=(
            f"one code of difference in an add{f', {where}' if where else ''}: a fused multiply-add "
            "rounds once, two steps twice"
        ),
        repair="choose input scales that are integer multiples of the output scale, with zero points 0",
    )


def _one_code(unit: FusedUnit, element: Element, got: float) -> Finding:
    distance = _tie_distance(element)
    near = distance <= NEAR_TIE
    where = "" if element.exact is None else f"{element.exact:.6f} lies {distance:.1e} from a rounding tie"
    if unit.kind == "add":
        return fused_add(where)
    if near and element.unfused is not None and element.unfused == got:
        return Finding(
            cause="unfused-float",
            explanation=(
                f"{where}, and float32 arithmetic without integer kernels gives {got:g}: this runtime "
                "does not fuse the node"
            ),
            repair=(
                "run at the optimisation level of the session policy, or choose a scale that moves the tie"
            ),
        )
    if near:
        return Finding(
            cause="tie",
            explanation=f"{where}: this runtime rounds or multiplies in another order",
            repair="change this site's scale by the least amount that moves the reachable sums off the tie",
        )
    return Finding(
        cause="other-arithmetic",
        explanation=(
            f"one code of difference, {where or 'position unknown'}, which rounding does not explain: a "
            "bias or a scale is another"
        ),
        repair=(
            "check that the runtime runs this very file (its SHA-256); then see the node's integers with "
            "mixport inspect"
        ),
    )


def _tie_distance(element: Element) -> float:
    return 1.0 if element.exact is None else float(abs(element.exact - np.floor(element.exact) - 0.5))


@dataclass(frozen=True, kw_only=True)
class _Saturated:
    finding: Finding
    certain: bool


def _saturation(unit: FusedUnit, element: Element, got: float) -> _Saturated | None:
    """VPMADDUBSW: unsigned codes times signed weights, two products added in int16, which saturates."""
    codes, weights = element.codes, element.weights
    if codes is None or weights is None or element.accumulator is None or unit.inputs[0].dtype != np.uint8:
        return None
    orders = {"channels last": (codes, weights)}
    if codes.ndim > 1:
        orders["channels first"] = (np.moveaxis(codes, -1, 0), np.moveaxis(weights, -1, 0))
    worst = 0
    for left, right in orders.values():
        pairs = _pairs(left * right)
        worst = max(worst, int(np.abs(pairs).max()))
    if worst <= _INT16_MAX:
        return None
    certain = any(
        _requantised(
            unit, element, int(np.clip(_pairs(left * right), _INT16_MIN, _INT16_MAX).sum()) + element.rest
        )
        == got
        for left, right in orders.values()
    )
    finding = Finding(
        cause="pair-saturation",
        explanation=f"two adjacent products sum to {worst}, beyond "
        f"int16{'; saturating them gives the very value' if certain else ''}: "
        "this processor multiplies 8-bit pairs without VNNI",
        repair=(
            "narrow the weights of this layer to 7 bits (--edge-bits 7 for the first and last layer), or "
            "run on a processor with VNNI"
        ),
    )
    return _Saturated(finding=finding, certain=certain)


def _pairs(products: NDArray[np.int64]) -> NDArray[np.int64]:
    flat = products.reshape(-1)
    return np.append(flat, 0)[: flat.size + flat.size % 2].reshape(-1, 2).sum(axis=1)


def _requantised(unit: FusedUnit, element: Element, accumulator: int) -> float | None:
    saturation = unit.saturation
    if saturation is None or element.exact is None or not element.accumulator:
        return None
    multiplier = (element.exact - saturation.zero_point) / element.accumulator
    return float(np.clip(np.rint(accumulator * multiplier) + saturation.zero_point, unit.low, unit.high))


def _swapped_channel(expected: Array, got: Array, index: tuple[int, ...]) -> Finding | None:
    """Channel c holds everywhere what another channel should hold."""
    if expected.shape != got.shape or expected.ndim < 2 or len(index) != expected.ndim:
        return None
    axis = 1 if expected.ndim == 4 else expected.ndim - 1
    mine = np.take(got, index[axis], axis=axis)
    if mine.size < 2 or np.all(mine == mine.reshape(-1)[0]):
        return None
    for other in range(expected.shape[axis]):
        if other != index[axis] and np.array_equal(mine, np.take(expected, other, axis=axis)):
            return Finding(
                cause="swapped-channel",
                explanation=f"channel {index[axis]} holds what channel {other} should hold",
                repair="check the channel order of this layer's weights and of the runtime's memory layout",
            )
    return None
