"""Softmax in front of a matrix product: numerators of few bits, divided after the product; see
mixport.arithmetic.attention_softmax.

`divide_after_product` rewrites the float graph, exactly in real arithmetic. Sites and statistics then follow
as for any operator; the exponents are fixed when the scales of the scores are.
"""

from __future__ import annotations

import torch
from torch import fx

from mixport.arithmetic.attention_softmax import LONGEST_ROW
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import argument, aten, call, module_path, only_user, shape_of, tensor_arg
from mixport.quantize.graph.marks import DIVIDES_LATER
from mixport.quantize.kernel_forms.score_chain import ScoreChain, keeps_rows, score_chain, unscaled
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.decision import Decision
from mixport.records.targets import Target

_BITS = 8
"""Narrower queries and keys make scores so noisy that cutting large probabilities, as a scale chosen for them
does, helps some models.
"""

_PRODUCTS = {aten.matmul.default, aten.bmm.default}


def divide_after_product(graph: fx.GraphModule, target: Target, *, bits: int) -> list[Decision]:
    """softmax(x) @ v becomes (e @ v) / sum(e) with e = exp(x - max(x)); returns what keeps a division before
    the product, and why.

    Only for a target that is portable, since others keep the runtime's own softmax, and that takes any scale
    and zero point: a step is no power of two, and numerators start at code 0.

    Args:
        graph: canonical, before its sites are planned.
        target: see above.
        bits: of what products read.
    """
    any_params = target.scale.form == "float32" and target.activations.zero_point == "any"
    if not target.portable or not any_params:
        return []
    flow = CodeFlow(graph)
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target is not aten.softmax.int:
            continue
        product = (
            _product_behind(node)
            if bits == _BITS
            else f"probabilities of {bits} bits do better with a scale of their own"
        )
        chain = product if isinstance(product, str) else score_chain(graph, flow, node)
        if isinstance(product, str) or isinstance(chain, str):
            why = product if isinstance(product, str) else str(chain)
            decisions.append(
                Decision(
                    where=module_path(node) or node.name, what="softmax divided before what reads it", why=why
                )
            )
        else:
            _divide_after(graph, node, chain, product=product)
    return decisions


def _product_behind(softmax: fx.Node) -> fx.Node | str:
    """The matrix product whose rows the softmax weighs, or why there is none."""
    shape, dtype = shape_of(softmax), argument(softmax, 2, "dtype")
    if (
        not shape
        or int(argument(softmax, 1, "dim")) % len(shape) != len(shape) - 1
        or dtype not in {None, torch.float32}
    ):
        return "it is over another axis than the last"
    if shape[-1] > LONGEST_ROW:
        return f"it is over {shape[-1]} scores, allowed {LONGEST_ROW}"
    node = softmax
    while (reader := only_user(node)) is not None and keeps_rows(reader, shape[-1]):
        node = reader
    if (
        reader is None
        or reader.target not in _PRODUCTS
        or len(reader.args) != 2
        or reader.args[0] is not node
    ):
        return "what reads it is not one matrix product that it is the left operand of"
    right = tensor_arg(reader, 1)
    return (
        reader
        if len(shape_of(right)) > 1 and not _is_constant(right)
        else "its product is with a vector or with constants"
    )


def _divide_after(graph: fx.GraphModule, softmax: fx.Node, chain: ScoreChain, *, product: fx.Node) -> None:
    scores, factor = unscaled(graph, chain, before=softmax)
    made = call(graph, OPS.softmax_numerators.default, scores, factor, before=softmax, like=softmax)
    softmax.replace_all_uses_with(made)
    graph.graph.erase_node(softmax)
    with graph.graph.inserting_after(product):
        divided = graph.graph.call_function(aten.div.Tensor, ())
    product.replace_all_uses_with(divided)
    total = call(
        graph, aten.sum.dim_IntList, tensor_arg(product, 0), [-1], True, before=divided, like=product
    )
    divided.args = (product, total)
    divided.meta.update(product.meta)
    for node in (total, divided):
        node.meta[DIVIDES_LATER] = True


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr"
