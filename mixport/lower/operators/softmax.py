"""Softmax as nodes whose result every IEEE-754 machine agrees on: mixport.arithmetic.portable_float, one ONNX
node a step.

LayerNorm is in `layer_norm`. The order of nodes is part of the result. Sums are over integers that their
float type holds exactly, so the order inside a sum is not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mixport.arithmetic.portable_float import REACH, SQUARINGS
from mixport.lower.operators.node_chain import NodeChain


def expand_softmax(graph: ir.Graph, old: ir.Node) -> None:
    """mixport::Softmax; see mixport.arithmetic.portable_float.softmax."""
    bits = old.attributes["bits"].as_int()
    x = old.inputs[0]
    assert x is not None
    step = NodeChain(graph, old.name or old.outputs[0].name or "softmax")
    below = step("Sub", step.over_last("ReduceMax", x), x)
    t = step("Mul", step("Min", below, step.scalar(REACH)), step.scalar(2.0**-SQUARINGS))
    power = step("Sub", step("Mul", t, step.scalar(0.5)), step.scalar(1.0))
    power = step("Add", step("Mul", power, t), step.scalar(1.0))
    for _ in range(SQUARINGS):
        power = step("Mul", power, power)
    codes = step("QuantizeLinear", power, step.scalar(2.0**-bits), step.scalar(0, np.uint16))
    numerators = step("Cast", codes, to=int(ir.DataType.FLOAT))
    step.insert(old, step("Div", numerators, step.over_last("ReduceSum", numerators)))
