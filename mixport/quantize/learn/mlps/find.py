"""The MLPs of transformer blocks, found on the traced graph alone: linear layer, GELU, linear layer, perhaps
a LayerNorm in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    argument,
    arguments,
    aten,
    call,
    clean,
    constant,
    module_path,
    only_user,
    shape_of,
    tensor_arg,
)
from mixport.quantize.graph.roles import Kind, classify

Values = Mapping[str, Tensor]
"""float32 by name: `weight1` [H, C], `bias1` [H], `weight2` [O, H], `bias2` [O]; with a normalisation `gain`
and `offset` [C].
"""


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """An MLP: nothing but it reads what lies between its first node and its last.

    Attributes:
        name: module path that its linear layers share.
        norm: LayerNorm over the last axis with weight and bias that only this MLP reads; None where there is
            none.
        first: linear layer.
        gelu: exact or tanh.
        second: linear layer.
    """

    name: str
    norm: fx.Node | None
    first: fx.Node
    gelu: fx.Node
    second: fx.Node

    @property
    def input(self) -> fx.Node:
        """Node whose value the MLP reads, [..., C]; each row alone."""
        return tensor_arg(self.norm or self.first, 0)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of what is learned, in graph order."""
        return tuple(
            module_path(node) or node.name
            for node in (self.norm, self.first, self.second)
            if node is not None
        )

    @property
    def approximate(self) -> str:
        """Of GELU: `none` or `tanh`."""
        return str(argument(self.gelu, 1, "approximate", "none"))

    @property
    def epsilon(self) -> float:
        """Of the normalisation."""
        return 0.0 if self.norm is None else float(arguments(self.norm, None, None, 1e-5, True, after=2)[4])


def find_mlps(graph: fx.GraphModule) -> tuple[Mlp, ...]:
    """Every MLP of a canonical float graph with recorded shapes, in graph order.

    Between its parts only reshapes that leave the last axis alone may lie, as linear layers on [..., C] come
    with them.
    """
    kinds = classify(graph)
    found: list[Mlp] = []
    for gelu in graph.graph.nodes:
        if gelu.target is not aten.gelu.default or kinds[gelu] is not Kind.UNARY:
            continue
        first, second = _source(gelu), _reader(gelu)
        if first is None or second is None or not (_is_linear(first, kinds) and _is_linear(second, kinds)):
            continue
        above = _source(first)
        norm = above if above is not None and _is_affine_norm(graph, above, kinds) else None
        found.append(Mlp(name=_shared_path(first, second), norm=norm, first=first, gelu=gelu, second=second))
    return tuple(found)


def read_values(graph: fx.GraphModule, mlp: Mlp) -> dict[str, Tensor]:
    """The constants of an MLP, see Values; a layer without bias has one of zeros."""
    values: dict[str, Tensor] = {}
    if mlp.norm is not None:
        _, _, gain, offset = arguments(mlp.norm, None, None, 1e-5, True, after=2)[:4]
        values |= {"gain": _constant(graph, gain), "offset": _constant(graph, offset)}
    for number, layer in enumerate((mlp.first, mlp.second), start=1):
        _, weight, bias = arguments(layer, None, after=2)
        values[f"weight{number}"] = _constant(graph, weight)
        values[f"bias{number}"] = torch.zeros(shape_of(weight)[0]) if bias is None else _constant(graph, bias)
    return values


def put_relu(graph: fx.GraphModule, mlp: Mlp, values: Values) -> None:
    """ReLU in the place of GELU, and these constants in that of the old ones, which others may read and so
    stay.
    """
    relu = call(graph, aten.relu.default, tensor_arg(mlp.gelu, 0), before=mlp.gelu, like=mlp.gelu)
    mlp.gelu.replace_all_uses_with(relu)

    def put(node: fx.Node, name: str) -> fx.Node:
        return add_constant(
            graph, values[name].cpu(), name=f"{module_path(node) or node.name}_{name}", before=node
        )

    if mlp.norm is not None:
        x, axes, _, _, *rest = arguments(mlp.norm, None, None, after=2)
        mlp.norm.args = (x, axes, put(mlp.norm, "gain"), put(mlp.norm, "offset"), *rest)
    for number, layer in enumerate((mlp.first, mlp.second), start=1):
        layer.args = (tensor_arg(layer, 0), put(layer, f"weight{number}"), put(layer, f"bias{number}"))
    clean(graph)


def _source(node: fx.Node) -> fx.Node | None:
    """What gives a node its values; None where others read it too."""
    source = tensor_arg(node, 0)
    while only_user(source) is not None and _keeps_rows(source):
        source = tensor_arg(source, 0)
    return source if only_user(source) is not None else None


def _reader(node: fx.Node) -> fx.Node | None:
    """The only reader of a node's values, None where there are several."""
    user = only_user(node)
    while user is not None and _keeps_rows(user):
        user = only_user(user)
    return user


def _keeps_rows(node: fx.Node) -> bool:
    return (
        node.target is aten.reshape.default
        and shape_of(node)[-1:] == shape_of(tensor_arg(node, 0))[-1:] != ()
    )


def _is_linear(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> bool:
    return node.target is aten.linear.default and kinds[node] is Kind.LAYER


def _is_affine_norm(graph: fx.GraphModule, node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> bool:
    if kinds[node] is not Kind.NORM:
        return False
    _, _, gain, offset = arguments(node, None, None, 1e-5, True, after=2)[:4]
    return constant(graph, gain) is not None and constant(graph, offset) is not None


def _constant(graph: fx.GraphModule, node: object) -> Tensor:
    value = constant(graph, node)
    assert value is not None  # the kind says so
    return value


def _shared_path(first: fx.Node, second: fx.Node) -> str:
    shared: list[str] = []
    for a, b in zip(module_path(first).split("."), module_path(second).split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared) or module_path(first) or first.name
