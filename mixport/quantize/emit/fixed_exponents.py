"""The exponent of a softmax's numerators, fixed when the scale of its scores is; see
mixport.arithmetic.attention_softmax.
"""

from __future__ import annotations

from torch import fx

from mixport.arithmetic.attention_softmax import choose_exponent
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import argument, call, module_path, tensor_arg
from mixport.quantize.emit.insert import code_params
from mixport.records.errors import InvariantError


def fix_exponent(graph: fx.GraphModule, node: fx.Node, *, bits: int) -> fx.Node:
    """The same numerators of the scores' codes, with an exponent whose results are shown to be the same on
    every machine.

    Args:
        graph: with quantisers inserted.
        node: mixport::softmax_numerators.
        bits: of the numerators.

    Raises:
        InvariantError: the scores have no 8-bit codes, or no exponent is found.
    """
    x, factor = tensor_arg(node, 0), float(argument(node, 1, "factor"))
    params, name = code_params(x), module_path(node) or node.name
    if params is None or params.storage != "uint8":
        raise InvariantError(f"the scores of softmax {name} have no 8-bit codes")
    exponent = choose_exponent(params.scale * factor, bits=bits)
    if exponent is None:
        raise InvariantError(
            f"softmax {name}: no exponent near {params.scale * factor} whose numerators are the same "
            "on every runtime"
        )
    return call(
        graph,
        OPS.coded_numerators.default,
        x,
        name,
        params.scale,
        params.zero_point,
        exponent.step,
        "uint8",
        before=node,
        like=node,
    )
