"""How far the codes of one node are the same on every machine, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixport.arithmetic.multiplication import is_product_proved
from mixport.arithmetic.quant_params import QuantParams
from mixport.records.graph_facts import NodeFacts
from mixport.validate.proof.bounds import SumBound
from mixport.validate.proof.pairs import PairSums
from mixport.validate.proof.requantise import RequantisationProof

Portability = Literal["exact by proof", "exact on measured runtimes", "not portable", "float"]
"""exact by proof: every IEEE runtime that computes the operator at all gives these codes. exact on measured
runtimes: the runtimes measured agree, and the arithmetic leaves room for others. not portable: some runtime
is known to differ. float: outside the claim.
"""


@dataclass(frozen=True, kw_only=True)
class LayerProof:
    """Everything proved of one layer."""

    sums: SumBound
    pairs: PairSums
    requantisation: RequantisationProof | None


def portability_of(node: NodeFacts, *, layer: LayerProof | None, add: str) -> tuple[Portability, str]:
    """Class and reason.

    Args:
        node: what it is.
        layer: of a layer or product; None for other nodes, and where its sums are of unknown length.
        add: what is wrong with an Add; empty where nothing is, and for other nodes.
    """
    if node.form in ("layer", "product"):
        return _layer(layer)
    if node.form == "add":
        if add:
            return "not portable", add
        return (
            "exact by proof",
            "input scales are integer multiples of the output scale: integers, nothing to round",
        )
    match node.form:
        case "table":
            return "exact by proof", "a table has every answer"
        case "function":
            return (
                "exact by proof",
                (
                    "for every code, the function's value lies further from the boundary of two codes "
                    "than any runtime's error"
                ),
            )
        case "movement":
            return "exact by proof", "moves values, computes none"
        case "requantise":
            return (
                "exact by proof",
                "one IEEE multiplication and one IEEE division of codes, then rounding half to even",
            )
        case "quantise":
            return "exact by proof", "one IEEE division, then rounding half to even"
        case "elementwise":
            more = f"; no integer operator, since {node.reason}" if node.reason else ""
            return "exact by proof", f"correctly rounded IEEE operations{more}"
        case "average":
            return (
                "exact on measured runtimes",
                "integer sum, one IEEE multiplication by a factor whose rounding the standard leaves open",
            )
        case "multiply":
            return _multiply(node)
        case _:
            return "float", node.reason or "a float operator that runtimes round differently"


def _multiply(node: NodeFacts) -> tuple[Portability, str]:
    """Products of two tensors of uint8 codes, by looking at each; others by measurement."""
    if len(node.scales) == 3 and all(low >= 0 and high <= 255 for low, high in node.ranges):
        a, b, y = (
            QuantParams(scale=scale, zero_point=zero_point, qmin=low, qmax=high, storage="uint8")
            for scale, zero_point, (low, high) in zip(node.scales, node.zero_points, node.ranges, strict=True)
        )
        if is_product_proved(a, b, y):
            return (
                "exact by proof",
                (
                    "every product lies further from the boundary of two codes than IEEE roundings "
                    "reach, in any order"
                ),
            )
    return (
        "exact on measured runtimes",
        "integer product, then IEEE operations whose order differs between machines",
    )


def _layer(layer: LayerProof | None) -> tuple[Portability, str]:
    if layer is None:
        return "exact on measured runtimes", "integer sums of a length that the file leaves open"
    if not layer.sums.fits_int32:
        return "not portable", f"sums reach {max(layer.sums.magnitude, layer.sums.stored)}, beyond int32"
    if layer.pairs.broken:
        return "not portable", f"x64 without VNNI saturates pairs of products ({layer.pairs.first})"
    proof = layer.requantisation
    if proof is None:
        return (
            "exact on measured runtimes",
            "integer sums, then one IEEE multiplication by a factor that the kernel rounds first",
        )
    if not proof.finite:
        return "not portable", "x_scale * w_scale / y_scale overflows float32, and a sum of 0 becomes NaN"
    if not proof.exact:
        return (
            "exact on measured runtimes",
            (
                f"one IEEE multiplication, which puts {proof.wrong_thresholds} steps between codes "
                "elsewhere than exact arithmetic"
            ),
        )
    how = "each computed" if proof.method == "enumerated" else "by its thresholds"
    return "exact by proof", f"all {proof.sums:,} sums fit, and requantise as in exact arithmetic ({how})"
