"""How codes flow through the float graph: where tensors are born, who reads them, and which operators run on
integers.

Quantisers sit where a tensor is born, behind an absorbed Relu, and data movement in between passes codes on.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from mixport.model.programs.fx_graph import only_user, tensor_arg, tensor_list_arg
from mixport.quantize.graph.roles import Kind, classify
from mixport.records.choices.scheme import EdgeConvention

_ALWAYS_INTEGER = frozenset({Kind.LAYER, Kind.PRODUCT, Kind.ADD, Kind.NORM, Kind.NUMERATORS})
_EIGHT_BITS = frozenset({Kind.INPUT, Kind.POOL, Kind.MULTIPLY, Kind.CONCAT, Kind.UNARY})
"""Kinds that give 8-bit codes wherever they run on integers."""
_INTEGER_WHEN_READ = frozenset({Kind.MULTIPLY, Kind.POOL, Kind.CONCAT, Kind.UNARY, Kind.CLAMP})
"""Kinds that run on integers only where another integer operator reads them."""


class CodeFlow:
    """Answers about one canonical float graph.

    Attributes:
        nodes: in graph order.
        kinds: role of every node.
        integer: nodes that run on integers.
        streams: adds whose residual chain feeds a normalisation or a float operator.
        first: layers that read the image.
        last: layers whose result is the output; the last layer where there is none.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.nodes: tuple[fx.Node, ...] = tuple(graph.graph.nodes)
        self.kinds = classify(graph)
        self.integer = self._integer_nodes()
        self.streams = self._stream_adds()
        self.first, self.last = self._edge_layers()

    def weight_edges(self, convention: EdgeConvention) -> frozenset[fx.Node]:
        """Layers whose weights have edge bits."""
        return frozenset() if convention == "vit" else self.first | self.last

    def reads_edge(self, layer: fx.Node, operand: fx.Node, convention: EdgeConvention) -> bool:
        """True where what a layer reads has edge bits."""
        if convention == "vit":
            return layer in self.first
        if layer in self.first or layer in self.last:
            return True
        birth = self.birth(operand)
        producer = tensor_arg(birth, 0) if self.kinds[birth] is Kind.CLAMP else birth
        return convention == "brecq" and producer in self.first

    def birth(self, node: fx.Node) -> fx.Node:
        """The node that gave the tensor its values: data movement walked back."""
        while self.kinds[node] is Kind.MOVE:
            node = tensor_arg(node, 0)
        return node

    def readers(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """(consumer, operand) pairs behind data movement; the operand is what the consumer reads directly."""
        for user in node.users:
            if self.kinds[user] is Kind.MOVE:
                yield from self.readers(user)
            else:
                yield user, node

    def carrier_tensor(self, node: fx.Node) -> fx.Node:
        """Where the result of an operator is quantised: behind a clamp that is its only reader, else at
        once.
        """
        user = only_user(node)
        return user if user is not None and self.kinds[user] is Kind.CLAMP else node

    def chain(self, tail: fx.Node) -> tuple[fx.Node, ...]:
        """The functions of one value that end in `tail`, first to last: one table replaces them."""
        nodes = [tail]
        while True:
            source = tensor_arg(nodes[-1], 0)
            if self.kinds[source] is not Kind.UNARY or only_user(source) is not nodes[-1]:
                return tuple(reversed(nodes))
            nodes.append(source)

    def ends_chain(self, node: fx.Node) -> bool:
        """True where no further function of one value follows."""
        user = only_user(node)
        return user is None or self.kinds[user] is not Kind.UNARY

    def code_operands(self, node: fx.Node) -> list[fx.Node]:
        """Operands that an integer node reads as codes."""
        kind = self.kinds[node]
        if kind is Kind.UNARY:
            return [tensor_arg(node, 0)] if len(self.chain(node)) == 1 else []
        if kind is Kind.CLAMP:
            # A clamp that shares its input with others requantises it; alone, it is absorbed into the
            # producer's quantiser.
            source = tensor_arg(node, 0)
            return [source] if only_user(source) is None and self.birth(source) in self.integer else []
        if kind is Kind.ADD and node in self.streams:
            return []
        if kind is Kind.CONCAT:
            return tensor_list_arg(node, 0)
        if kind in {Kind.PRODUCT, Kind.ADD, Kind.MULTIPLY}:
            return [tensor_arg(node, 0), tensor_arg(node, 1)]
        return [tensor_arg(node, 0)]

    def reads_stream(self, norm: fx.Node) -> bool:
        """True where a normalisation reads 16-bit codes: everywhere but behind operators whose own result is
        8-bit codes.
        """
        birth = self.birth(tensor_arg(norm, 0))
        if self.kinds[birth] is Kind.CLAMP:
            birth = self.birth(tensor_arg(birth, 0))
        if self.kinds[birth] is Kind.ADD:
            return birth in self.streams
        is_convolution = self.kinds[birth] is Kind.LAYER and "conv" in str(birth.target)
        return not is_convolution and self.kinds[birth] not in _EIGHT_BITS

    def _integer_nodes(self) -> frozenset[fx.Node]:
        integer: set[fx.Node] = set()
        for node in reversed(self.nodes):
            kind = self.kinds[node]
            read = kind in _INTEGER_WHEN_READ and any(user in integer for user, _ in self.readers(node))
            if kind in _ALWAYS_INTEGER or read:
                integer.add(node)
        return frozenset(integer)

    def _stream_adds(self) -> frozenset[fx.Node]:
        """Adds of a residual chain in which some sum feeds a float operator."""
        adds = [node for node in self.nodes if self.kinds[node] is Kind.ADD]
        parent = {add: add for add in adds}
        by_tensor = {self.carrier_tensor(add): add for add in adds} | {add: add for add in adds}

        def find(node: fx.Node) -> fx.Node:
            while parent[node] is not node:
                node = parent[node]
            return node

        for add in adds:
            for index in (0, 1):
                other = by_tensor.get(self.birth(tensor_arg(add, index)))
                if other is not None:
                    parent[find(add)] = find(other)
        tainted = {
            find(add)
            for add in adds
            if any(self._wants_stream(user) for user, _ in self.readers(self.carrier_tensor(add)))
        }
        return frozenset(add for add in adds if find(add) in tainted)

    def _wants_stream(self, node: fx.Node) -> bool:
        return self.kinds[node] is Kind.NORM or (node.op == "call_function" and node not in self.integer)

    def _edge_layers(self) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
        layers = [node for node in self.nodes if self.kinds[node] is Kind.LAYER]
        first = {node for node in layers if self.kinds[self.birth(tensor_arg(node, 0))] is Kind.INPUT}
        last = {node for node in layers if any(user.op == "output" for user, _ in self.readers(node))}
        if not last and layers:
            last = {layers[-1]}
        return frozenset(first), frozenset(last)
