"""Sums of two code tensors: exact everywhere when both input scales are integer multiples of the output's,
and not otherwise.

Runtimes compute a * r_a + b * r_b + offset in float32, some with a fused multiply-add and some without, and
the offset z_y - (r_a z_a + r_b z_b) rounded once (ONNX Runtime's QLinearAdd). With integer ratios each of
these is an integer; below 2^24 float32 holds them all, so no order and no fusion changes anything. With
fractional ratios the two orders round differently, and an odd output zero point sends ties the other way.
"""

from __future__ import annotations

from mixport.arithmetic.integer import add_ratio
from mixport.records.graph_facts import NodeFacts
from mixport.validate.proof.bounds import FLOAT32_LIMIT

_WIDEST = 256


def add_fault(node: NodeFacts) -> str:
    """What keeps an Add from being exact everywhere; empty where it is.

    Args:
        node: of form `add`: scales and zero points of both inputs and of the output.
    """
    if len(node.scales) != 3:
        return "one of its inputs is constant"
    *inputs, output = node.scales
    ratios = [add_ratio(scale, output) for scale in inputs]
    for position, ratio in enumerate(ratios):
        if ratio is None:
            odd = node.zero_points[2] % 2
            tie = (
                f"; output zero point {node.zero_points[2]} is odd, so ties go the other way too"
                if odd
                else ""
            )
            return (
                f"scale {inputs[position]!r} of input {position} is {inputs[position] / output:.9g} "
                f"times the output scale, no integer{tie}"
            )
    reach = sum(
        ratio * (_WIDEST + abs(zero))
        for ratio, zero in zip(ratios, node.zero_points, strict=False)
        if ratio is not None
    )
    if reach + abs(node.zero_points[2]) > FLOAT32_LIMIT:
        return f"its sums reach {reach}, beyond 2^24"
    return ""
