"""What a file is made of, as static proofs need it: its nodes, and the integers of its layers. Read by
validate, judged by proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

Form = Literal[
    "layer",
    "product",
    "add",
    "multiply",
    "average",
    "table",
    "function",
    "movement",
    "requantise",
    "quantise",
    "elementwise",
    "float",
]
"""What a node computes: a Conv, Gemm or MatMul with weights; one of two code tensors; ... ; codes from codes
by a table, or by a float function; moved codes; codes of another scale; codes from floats; correctly rounded
IEEE operations; anything else in float.
"""


@dataclass(frozen=True, kw_only=True)
class OutputCodes:
    """Quantiser behind a layer: scale, zero point, and the range of its codes, an integer Clip included."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What one Conv, Gemm or MatMul sums up.

    Attributes:
        site: name of the layer's output.
        node: name of the ONNX node.
        op: ONNX operator.
        weights: centred codes, output channels first; None for a product of two code tensors.
        bias: codes [O], None without one.
        left: (low, high, zero point) of the input codes.
        right: the same of the second code tensor, None where there are weights.
        products: products in one sum.
        groups: of a convolution.
        x_scale: float32 value of the input's scale.
        w_scale: float32 [O] of the weights, or [1] of a whole tensor.
        y: of the output; None where the layer gives floats.
        weight_zero_point: what was subtracted from the stored weights; kernels multiply the stored ones and
            correct the sum.
        signed: whether the input's codes, and the weights' or second tensor's, are stored as signed integers.
    """

    site: str
    node: str
    op: str
    weights: Int | None
    bias: Int | None
    left: tuple[int, int, int]
    right: tuple[int, int, int] | None
    products: int
    groups: int
    x_scale: float
    w_scale: NDArray[np.float32]
    y: OutputCodes | None
    weight_zero_point: int = 0
    signed: tuple[bool, bool] = (False, True)


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node of the file, with everything that runs as one operator with it.

    Attributes:
        node: name of the ONNX node.
        op: ONNX operator.
        site: what it gives: a code tensor or floats.
        form: what it computes.
        reason: why it is float, or why a node that could run on integers does not; empty as a rule.
        scales: an Add's or a Mul's, in float32: both inputs and the output; empty elsewhere, and where one
            input is constant.
        zero_points: in the same order.
        ranges: smallest and largest codes, in the same order.
        wrong: what the file gets wrong at this node, empty as a rule: e.g. a bias in another scale than the
            sums.
    """

    node: str
    op: str
    site: str
    form: Form
    reason: str = ""
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    wrong: str = ""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A whole file.

    Attributes:
        nodes: in graph order.
        layers: those that sum products, in graph order.
        pair_limit: what the target allows two neighbouring products to reach; None where nothing is asked.
        portable: the file promises the same codes on every runtime, so that a form which breaks this is a
            violation.
    """

    nodes: tuple[NodeFacts, ...]
    layers: tuple[LayerFacts, ...]
    pair_limit: int | None = None
    portable: bool = True


class Prover(Protocol):
    """Static proofs over a file, e.g. `mixport.validate.proof.prove`.

    Returns plain data: `sites` holds one record a layer, `nodes` one a node with its portability class,
    `violations` what is broken.
    """

    def __call__(self, facts: FileFacts, /) -> Mapping[str, Any]:
        """Prove, or say what does not hold."""
        ...
