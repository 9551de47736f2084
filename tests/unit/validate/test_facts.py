"""Facts of nodes: scales that contradict each other are told, and a factor that the scale undoes is no
contradiction.
"""

from __future__ import annotations

import numpy as np
import pytest

from mixport.validate.facts import facts_of
from mixport.validate.interpreter.interpreter import Interpreter
from tests.unit.validate.qdq_graphs import QdqBuilder

SCALE = 0.01


def contradictions(
    *,
    factor: float,
    made: float,
    read: float = SCALE,
    dtype: str = "int16",
    behind: str = "Gemm",
    first: bool = True,
) -> list[str]:
    """A linear layer, a Mul, codes made with one scale and read with another; what the facts say is wrong."""
    b = QdqBuilder(shape=("N", 6))
    b.quantise("input", "x", 0.03, 128)
    value = b.layer("Gemm", "x", (4, 6), name="fc")
    if behind != "Gemm":
        value = b.node(behind, [value])
    operands = [value, b.constant(np.float32(factor))]
    product = b.node("Mul", operands if first else operands[::-1])
    b.quantise(product, "codes", made, 0, dtype=dtype)
    b.quantisation["read"] = (np.float32(read), 0, dtype)
    values = b.dequantise("codes", like="read")
    model = b.build(b.node("Sqrt", [b.node("Abs", [values])]))
    return [
        fact.wrong
        for fact in facts_of(Interpreter(model), input_shape=(1, 6)).nodes
        if "is quantised with" in fact.wrong
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 2.0, "made": 2 * SCALE},
        {"factor": 2.0, "made": SCALE},
        {"factor": 0.25, "made": SCALE},
        {"factor": 1.0, "made": SCALE, "dtype": "uint8"},
        {"factor": 0.5, "made": SCALE, "dtype": "uint8", "first": False},
        {"factor": 0.5, "made": SCALE, "dtype": "uint8", "behind": "Relu"},
        {"factor": 0.3, "made": SCALE, "dtype": "uint8"},
    ],
    ids=[
        "ours",
        "the model's, 16 bits",
        "a quarter",
        "one",
        "factor first",
        "behind a Relu",
        "no power of two",
    ],
)
def test_equal_scales_do_not_contradict_each_other(options: dict[str, object]) -> None:
    assert contradictions(**options) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 2.0, "made": 2 * SCALE, "dtype": "uint8"},
        {"factor": 2.0, "made": 2 * SCALE, "behind": "Relu"},
        {"factor": 2.0, "made": 4 * SCALE},
        {"factor": 3.0, "made": 3 * SCALE},
    ],
    ids=["8 bits", "no product before it", "twice the factor", "no power of two"],
)
def test_unequal_scales_are_told(options: dict[str, object]) -> None:
    (wrong,) = contradictions(**options)  # type: ignore[arg-type]
    assert "codes is quantised with scale" in wrong and "and read with scale 0.01" in wrong
