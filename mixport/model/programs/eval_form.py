"""Bring a program that was exported in train mode into the form that model.eval() exports: running
statistics, nothing random.

An exported program keeps the mode of its export in its operators; eval() does not reach it. A batch norm in
training form normalises by the batch it is given, so that an image's output depends on its neighbours, and a
dropout is drawn anew in each run.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import argument, aten, tensor_arg
from mixport.records.decision import Decision

_TUPLE_NORMS = {
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit.default,
    aten.native_batch_norm.default,
}
"""(input, weight, bias, running mean, running var, training, momentum, eps), several results; the first is
the output.
"""

_DROPOUTS = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout.default,
    aten.alpha_dropout_.default,
    aten.feature_alpha_dropout.default,
    aten.feature_alpha_dropout_.default,
}
_BERNOULLI: Mapping[Any, int] = MappingProxyType({aten.bernoulli_.float: 1, aten.bernoulli.p: 1})
"""Draw of zeros and ones -> position of the probability of a one."""
_DIVISIONS = {aten.div_.Tensor, aten.div.Tensor, aten.div_.Scalar, aten.div.Scalar}
_UPDATES = {aten.copy_.default, aten.add_.Tensor, aten.add_.Scalar}
_STATISTICS = ("num_batches_tracked", "running_mean", "running_var")
_ATTENTION_DROPOUT = 4
"""Position of dropout_p in scaled_dot_product_attention."""


def to_eval_form(module: fx.GraphModule) -> tuple[Decision, ...]:
    """Rewrite the graph in place; gives one decision that says what was done, or none where it is in eval
    form already.

    Batch norms without running statistics, and random numbers other than dropouts and dropped paths, stay as
    they are.
    """
    norms = dropouts = 0
    updated: list[fx.Node] = []
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if (
            node.target is aten.batch_norm.default
            and argument(node, 5, "training") is True
            and node.args[3] is not None
        ):
            node.args = (*node.args[:5], False, *node.args[6:])
            norms += 1
        elif (
            node.target in _TUPLE_NORMS and argument(node, 5, "training") is True and node.args[3] is not None
        ):
            _use_running_statistics(module, node)
            norms += 1
        elif node.target in _DROPOUTS and argument(node, 2, "train") is True:
            _skip(node, tensor_arg(node, 0))
            dropouts += 1
        elif node.target is aten.native_dropout.default and argument(node, 2, "train") is not False:
            for result in list(node.users):
                if result.target is operator.getitem and result.args[1] == 0:
                    _skip(result, tensor_arg(node, 0))
            dropouts += 1
        elif node.target is aten.mul.Tensor and (kept := _what_is_dropped(node)) is not None:
            _skip(node, kept)
            dropouts += 1
        elif node.target is aten.scaled_dot_product_attention.default and argument(
            node, _ATTENTION_DROPOUT, "dropout_p", 0.0
        ):
            _without_attention_dropout(node)
            dropouts += 1
        elif node.target in _UPDATES and _is_statistic(node.args[0]):
            updated.append(node)
    for node in updated:
        if norms:
            _erase_unused(node)
    if not norms and not dropouts:
        return ()
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    did = [
        f"{_counted(norms, 'batch norm')} in eval form, with running statistics" if norms else "",
        f"{_counted(dropouts, 'dropout')} left out" if dropouts else "",
    ]
    why = "the program was exported in train mode; this is model.eval()"
    return (Decision(where="model", what=" and ".join(filter(None, did)), why=why),)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _use_running_statistics(module: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias, mean, var, _, momentum, eps = node.args
    with module.graph.inserting_before(node):
        norm = module.graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
        )
    outputs = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    norm.meta.update({key: value for key, value in node.meta.items() if key != "val"})
    if outputs and "val" in outputs[0].meta:
        norm.meta["val"] = outputs[0].meta["val"]
    for output in outputs:
        _skip(output, norm)


def _what_is_dropped(node: fx.Node) -> fx.Node | None:
    """x of x * mask, where mask is a draw of zeros and ones, or that divided by the probability of a one: its
    mean over draws is 1.
    """
    for x, mask in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        if not isinstance(x, fx.Node) or not isinstance(mask, fx.Node):
            continue
        if mask.target in _BERNOULLI:
            return x
        if (
            mask.target in _DIVISIONS
            and isinstance(draw := mask.args[0], fx.Node)
            and draw.target in _BERNOULLI
        ):
            return x if mask.args[1] == draw.args[_BERNOULLI[draw.target]] else None
    return None


def _without_attention_dropout(node: fx.Node) -> None:
    if len(node.args) > _ATTENTION_DROPOUT:
        node.args = (*node.args[:_ATTENTION_DROPOUT], 0.0, *node.args[_ATTENTION_DROPOUT + 1 :])
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "dropout_p"}


def _is_statistic(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target).endswith(_STATISTICS)


def _skip(node: fx.Node, source: fx.Node) -> None:
    node.replace_all_uses_with(source)
    _erase_unused(node)


def _erase_unused(node: fx.Node) -> None:
    """Erase a node without users, and what only it read. Dead code elimination keeps draws and writes, which
    count as effects.
    """
    if node.users or node.op != "call_function":
        return
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        _erase_unused(source)
