"""What one rewrite tells the passes behind it: marks in the meta of nodes, and the operator that a node
stands for.
"""

from __future__ import annotations

import operator

from torch import fx

from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import aten, tensor_arg

FUNCTION_GATE, FUNCTION_RESULT = "mixport_function_gate", "mixport_function_result"
"""In the meta of the two operators that stand for one function of the model, which the second one's codes are
named after.
"""
CHANNEL_BOUNDS = "mixport_channel_bounds"
"""In the meta of a clamp with an upper bound for each channel: 0 and the lowest of them, at which its codes
saturate.
"""

DIVIDES_LATER = "mixport_divides_later"
"""In the meta of the sum and the division that a softmax has behind its product: they are part of its form,
no operators of the model.
"""


def short_op(node: fx.Node) -> str:
    """Operator without namespace and overload: conv2d."""
    if node.target is operator.getitem or (DIVIDES_LATER in node.meta and node.target is aten.div.Tensor):
        return short_op(tensor_arg(node, 0))
    if node.target is OPS.softmax_numerators.default:
        return "softmax"
    return str(node.target).removeprefix("aten.").removeprefix("mixport.").split(".")[0]
