"""The proof of pairs reads from the file which codes a kernel multiplies: int8 inputs, and weights with a
zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mixport.validate.facts import facts_of
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.proof.prove import prove

f32 = np.float32


def one_conv(weight: Any, *, zero_point: Any, codes: type[np.integer[Any]]) -> onnx.ModelProto:
    """Quantised input, one convolution of 1x1, quantised output; other tools write such files."""
    constants = {
        "one": f32(1),
        "z": codes(0),
        "w": np.asarray(weight).reshape(1, -1, 1, 1),
        "wz": np.asarray(zero_point),
        "ys": f32(300),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "z"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "one", "z"], ["xd"], name="xd"),
        helper.make_node("DequantizeLinear", ["w", "one", "wz"], ["wd"], name="wd"),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "ys", "z"], ["y"], name="y"),
        helper.make_node("DequantizeLinear", ["y", "ys", "z"], ["output"], name="yd"),
    ]
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 4, 4])]
    out = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends, out, stored),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


@pytest.mark.parametrize(
    ("weight", "zero_point", "codes", "portability"),
    [
        (np.int8([100, 100]), np.int8(0), np.int8, "not portable"),
        (np.int8([64, 64]), np.int8(0), np.int8, "exact by proof"),
        (np.int8([127, 127]), np.int8(96), np.uint8, "not portable"),
        (np.uint8([255, 255]), np.uint8(128), np.uint8, "exact by proof"),
    ],
)
def test_portability_is_that_of_the_kernel(
    weight: Any, zero_point: Any, codes: type[np.integer[Any]], portability: str
) -> None:
    interpreter = Interpreter(one_conv(weight, zero_point=zero_point, codes=codes))
    proofs = prove(facts_of(interpreter, input_shape=(1, 2, 4, 4)))
    assert next(node["portability"] for node in proofs["nodes"] if node["node"] == "conv") == portability


def test_a_multiplier_that_overflows_is_not_portable() -> None:
    """Measured: a sum of 0 then gives other codes in WebAssembly and on arm64 than on x64."""
    model = one_conv(np.int8([1, 2]), zero_point=np.int8(0), codes=np.uint8)
    for tensor in model.graph.initializer:
        if tensor.name == "one":
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(f32(1e30)), "one"))
    proofs = prove(facts_of(Interpreter(model), input_shape=(1, 2, 4, 4)))
    assert next(node["portability"] for node in proofs["nodes"] if node["node"] == "conv") == "not portable"
