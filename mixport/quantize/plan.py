"""Decide which tensors get codes, at which width, and which of them share a scale: from the graph alone, before any statistics.

Demand flows backwards. A layer or product asks its inputs for codes of A bits ("compute"); an add, multiply, pool, concat or
table asks for 8-bit carriers; float operators ask for nothing. Quantisers sit where a tensor is born, behind an absorbed Relu,
and data movement in between passes codes on. Adds whose result feeds a float normalisation are streams: 16-bit codes, and the
addition itself is plain IEEE float between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from mixport.artifacts import Decision
from mixport.quantize.fx_graph import module_path, only_user
from mixport.quantize.roles import Kind, clamp_bounds, classify
from mixport.quantspec import Role, Scheme

Demand = tuple[str, int]
"""("carrier" | "stream" | "compute", bits)."""


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """One quantiser to insert.

    Attributes:
        name: unique site name.
        tensor: float node whose values are quantised (statistics are taken here).
        source: node the quantiser reads: the input of an absorbed Relu, else `tensor`.
        op: producing operator.
        role: input, compute, carrier or table.
        bits: width.
        bounds: (0, upper) of the absorbed clamp, None without.
        base: site whose dequantised value is requantised, None for the first quantiser of the tensor.
        consumers: (node, operand) pairs that read this site where it is not the tensor's first; empty otherwise.
        chain: nodes of the function that a table replaces, first to last.
        reason: why the site exists and has this width.
    """

    name: str
    tensor: fx.Node
    source: fx.Node
    op: str
    role: Role
    bits: int
    bounds: tuple[float, float | None] | None
    base: str | None
    consumers: tuple[tuple[fx.Node, fx.Node], ...]
    chain: tuple[fx.Node, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScaleGroup:
    """Carriers tied together.

    Attributes:
        members: site names that share the base scale.
        leaves: members whose scale may be an integer multiple of the base scale (inputs of adds only).
        equal_zero_point: sets of members that must also share their zero point (operands of a concat).
    """

    members: tuple[str, ...]
    leaves: frozenset[str]
    equal_zero_point: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole decision."""

    kinds: dict[fx.Node, Kind]
    sites: tuple[SitePlan, ...]
    groups: tuple[ScaleGroup, ...]
    edges: frozenset[fx.Node]
    decisions: tuple[Decision, ...]


def make_plan(graph: fx.GraphModule, scheme: Scheme, *, stream_bits: int) -> Plan:
    """Plan all activation sites of a canonical float graph."""
    return _Planner(graph, scheme, stream_bits).plan()


@dataclass
class _Tensor:
    node: fx.Node
    demands: dict[Demand, list[tuple[fx.Node, fx.Node]]] = field(default_factory=dict)


class _Planner:
    def __init__(self, graph: fx.GraphModule, scheme: Scheme, stream_bits: int) -> None:
        self.graph, self.scheme, self.stream_bits = graph, scheme, stream_bits
        self.kinds = classify(graph)
        self.order = {node: i for i, node in enumerate(graph.graph.nodes)}
        self.integer = self._integer_nodes()
        self.streams = self._stream_adds()
        self.edges = self._edge_layers()
        self.names: set[str] = {"input", "output"}

    def plan(self) -> Plan:
        tensors = self._demands()
        sites: list[SitePlan] = []
        primary: dict[fx.Node, SitePlan] = {}
        for node in sorted(tensors, key=self.order.__getitem__):
            for site in self._sites_of(tensors[node]):
                sites.append(site)
                if site.base is None:
                    primary[node] = site
        groups = self._groups(primary, {(s.tensor, s.role): s for s in sites})
        return Plan(
            kinds=self.kinds, sites=tuple(sites), groups=groups, edges=frozenset(self.edges), decisions=tuple(self._float_decisions())
        )

    # -- graph questions -------------------------------------------------------------------------------------------------

    def birth(self, node: fx.Node) -> fx.Node:
        """The node that gave the tensor its values: data movement walked back."""
        while self.kinds[node] is Kind.MOVE:
            node = node.args[0]  # type: ignore[assignment]
        return node

    def readers(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """(consumer, operand) pairs behind data movement; the operand is what the consumer reads directly."""
        for user in node.users:
            if self.kinds[user] is Kind.MOVE:
                yield from self.readers(user)
            else:
                yield user, node

    def carrier_tensor(self, node: fx.Node) -> fx.Node:
        """Where the result of an operator is quantised: behind a clamp that is its only reader, else at once."""
        user = only_user(node)
        return user if user is not None and self.kinds[user] is Kind.CLAMP else node

    def _table_head(self, node: fx.Node) -> fx.Node:
        while self.kinds[node.args[0]] is Kind.UNARY and only_user(node.args[0]) is node:  # type: ignore[index]
            node = node.args[0]  # type: ignore[assignment]
        return node

    def _is_table_tail(self, node: fx.Node) -> bool:
        user = only_user(node)
        return not (user is not None and self.kinds[user] is Kind.UNARY)

    # -- which operators run on integers ----------------------------------------------------------------------------------

    def _integer_nodes(self) -> set[fx.Node]:
        integer: set[fx.Node] = set()

        def wanted(node: fx.Node) -> bool:
            return any(user in integer for user, _ in self.readers(node))

        for node in reversed(list(self.graph.graph.nodes)):
            kind = self.kinds[node]
            if kind in {Kind.LAYER, Kind.PRODUCT, Kind.ADD} or (
                kind in {Kind.MULTIPLY, Kind.POOL, Kind.CONCAT, Kind.UNARY, Kind.CLAMP} and wanted(node)
            ):
                integer.add(node)
        return integer

    def _stream_adds(self) -> set[fx.Node]:
        """Adds of a residual chain in which some sum feeds a float operator."""
        adds = [node for node in self.graph.graph.nodes if self.kinds[node] is Kind.ADD]
        parent: dict[fx.Node, fx.Node] = {add: add for add in adds}
        by_tensor = {self.carrier_tensor(add): add for add in adds} | {add: add for add in adds}

        def find(node: fx.Node) -> fx.Node:
            while parent[node] is not node:
                node = parent[node]
            return node

        for add in adds:
            for operand in add.args[:2]:
                other = by_tensor.get(self.birth(operand))  # type: ignore[arg-type]
                if other is not None:
                    parent[find(add)] = find(other)
        tainted = {find(add) for add in adds if any(self._stays_float(user) for user, _ in self.readers(self.carrier_tensor(add)))}
        return {add for add in adds if find(add) in tainted}

    def _stays_float(self, node: fx.Node) -> bool:
        return node.op == "call_function" and node not in self.integer

    def _edge_layers(self) -> set[fx.Node]:
        layers = [node for node in self.graph.graph.nodes if self.kinds[node] is Kind.LAYER]
        first = {node for node in layers if self.kinds[self.birth(node.args[0])] is Kind.INPUT}  # type: ignore[arg-type]
        last = {node for node in layers if any(user.op == "output" for user, _ in self.readers(node))}
        if not last and layers:
            last = {layers[-1]}
        return first | last

    # -- demands ----------------------------------------------------------------------------------------------------------

    def _demands(self) -> dict[fx.Node, _Tensor]:
        tensors: dict[fx.Node, _Tensor] = {}

        def ask(operand: fx.Node, consumer: fx.Node, demand: Demand) -> None:
            tensor = tensors.setdefault(birth := self.birth(operand), _Tensor(node=birth))
            tensor.demands.setdefault(demand, []).append((consumer, operand))

        for node in self.graph.graph.nodes:
            if node not in self.integer:
                continue
            for operand in self._operands(node):
                ask(operand, node, self._demand_of(node))
        for node in self.graph.graph.nodes:
            if node in self.integer:
                self._ask_for_result(tensors, node)
        return tensors

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        kind = self.kinds[node]
        if kind is Kind.UNARY:
            return [node.args[0]] if self._table_head(node) is node else []  # type: ignore[list-item]
        if kind is Kind.CLAMP:
            # A clamp that shares its input with others requantises it; alone, it is absorbed into the producer's quantiser.
            source: fx.Node = node.args[0]  # type: ignore[assignment]
            return [source] if only_user(source) is None and self.birth(source) in self.integer else []
        if kind is Kind.ADD and node in self.streams:
            return []
        if kind is Kind.CONCAT:
            return list(node.args[0])  # type: ignore[arg-type]
        operands = node.args[:2] if kind in {Kind.PRODUCT, Kind.ADD, Kind.MULTIPLY} else node.args[:1]
        return list(operands)  # type: ignore[arg-type]

    def _demand_of(self, node: fx.Node) -> Demand:
        if self.kinds[node] in {Kind.LAYER, Kind.PRODUCT}:
            return "compute", self.scheme.edge_bits if node in self.edges else self.scheme.activation_bits
        return "carrier", self.scheme.carrier_bits

    def _ask_for_result(self, tensors: dict[fx.Node, _Tensor], node: fx.Node) -> None:
        """Operators that only run on integers when their result is quantised ask for it themselves."""
        kind = self.kinds[node]
        is_convolution = kind is Kind.LAYER and "conv" in str(node.target)
        is_table = kind is Kind.UNARY and self._is_table_tail(node)
        if kind not in {Kind.ADD, Kind.MULTIPLY, Kind.POOL} and not is_convolution and not is_table:
            return
        tensor = self.carrier_tensor(node)
        known = tensors.setdefault(tensor, _Tensor(node=tensor))
        if node in self.streams:
            known.demands.setdefault(("stream", self.stream_bits), [])
        elif kind is Kind.ADD or not known.demands:
            # The sum of two carriers stays a carrier: its scale divides theirs, which 4-bit codes could not keep.
            known.demands.setdefault(("carrier", self.scheme.carrier_bits), [])

    # -- sites ------------------------------------------------------------------------------------------------------------

    def _sites_of(self, tensor: _Tensor) -> Iterator[SitePlan]:
        node = tensor.node
        if self.kinds[node] is Kind.CONSTANT:
            return
        rank = {"stream": 0, "carrier": 1, "compute": 2}
        demands = sorted(tensor.demands, key=lambda d: (rank[d[0]], -d[1]))
        if self.kinds[node] is Kind.CONCAT:  # its operands carry the codes
            demands = [("carrier", self.scheme.carrier_bits), *[d for d in demands if d[0] == "compute"]]
        bounds = clamp_bounds(node) if self.kinds[node] is Kind.CLAMP else None
        producer: fx.Node = node.args[0] if bounds is not None else node  # type: ignore[assignment]
        born = producer if only_user(producer) is not None else node  # a clamp among other readers is its own birth
        first: SitePlan | None = None
        for kind, bits in demands:
            if first is not None and kind == "compute" and bits == first.bits:
                continue
            base = None if first is None else first.name
            chain = self._chain(node) if base is None and self.kinds[node] is Kind.UNARY else ()
            site = SitePlan(
                name=self._name(born if base is None else node, base, bits),
                tensor=node,
                source=producer if base is None else node,
                op="input" if self.kinds[node] is Kind.INPUT else _short_op(born),
                role=self._role(node, kind, chain),
                bits=bits,
                bounds=bounds,
                base=base,
                consumers=() if base is None else tuple(tensor.demands.get((kind, bits), ())),
                chain=chain,
                reason=_reason(kind, bits, self.scheme),
            )
            first = first or site
            if not (self.kinds[node] is Kind.CONCAT and kind == "carrier"):
                yield site

    def _role(self, node: fx.Node, kind: str, chain: tuple[fx.Node, ...]) -> Role:
        if self.kinds[node] is Kind.INPUT:
            return "input"
        if chain:
            return "table"
        return "compute" if kind == "compute" else "carrier"

    def _chain(self, node: fx.Node) -> tuple[fx.Node, ...]:
        head, nodes = self._table_head(node), [node]
        while nodes[-1] is not head:
            nodes.append(nodes[-1].args[0])  # type: ignore[arg-type]
        return tuple(reversed(nodes))

    def _name(self, producer: fx.Node, base: str | None, bits: int) -> str:
        if base is not None:
            wanted = f"{base}.a{bits}"
        elif self.kinds[producer] is Kind.INPUT:
            wanted = "input.codes"
        else:
            path, op = module_path(producer), _short_op(producer)
            is_leaf = self.kinds[producer] in {Kind.LAYER, Kind.UNARY, Kind.CLAMP, Kind.POOL, Kind.FLOAT} and bool(path)
            wanted = path if is_leaf else f"{path}.{op}" if path else op
        name, n = wanted, 1
        while name in self.names:
            n += 1
            name = f"{wanted}_{n}"
        self.names.add(name)
        return name

    # -- groups -----------------------------------------------------------------------------------------------------------

    def _groups(self, primary: dict[fx.Node, SitePlan], by_role: dict[tuple[fx.Node, Role], SitePlan]) -> tuple[ScaleGroup, ...]:
        parent: dict[str, str] = {}
        sums: set[str] = set()
        concats: list[tuple[str, ...]] = []

        def find(name: str) -> str:
            parent.setdefault(name, name)
            while parent[name] != name:
                name = parent[name]
            return name

        def carriers(operand: fx.Node) -> list[str]:
            birth = self.birth(operand)
            if self.kinds[birth] is Kind.CONCAT:
                return [name for source in birth.args[0] for name in carriers(source)]  # type: ignore[union-attr]
            site = by_role.get((birth, "carrier")) or primary.get(birth)
            return [site.name] if site is not None else []

        for node in self.graph.graph.nodes:
            if node not in self.integer or node in self.streams:
                continue
            if self.kinds[node] is Kind.ADD:
                result = carriers(self.carrier_tensor(node))
                sums.update(result)
                members = [*result, *(name for operand in node.args[:2] for name in carriers(operand))]  # type: ignore[arg-type]
            elif self.kinds[node] is Kind.CONCAT:
                members = [name for operand in node.args[0] for name in carriers(operand)]  # type: ignore[union-attr]
                concats.append(tuple(dict.fromkeys(members)))
            else:
                continue
            for name in members:
                parent[find(name)] = find(members[0])
        joined: dict[str, list[str]] = {}
        for name in parent:
            joined.setdefault(find(name), []).append(name)
        in_concat = {name for names in concats for name in names}
        return tuple(
            ScaleGroup(
                members=tuple(names),
                leaves=frozenset(n for n in names if n not in sums and n not in in_concat),
                equal_zero_point=_merge([c for c in concats if c and find(c[0]) == root]),
            )
            for root, names in joined.items()
        )

    def _float_decisions(self) -> Iterator[Decision]:
        for node, kind in self.kinds.items():
            if (
                node.op == "call_function"
                and kind not in {Kind.CONSTANT, Kind.MOVE}
                and node not in self.integer
                and node.meta.get("is_float", False)
            ):
                why = "no integer consumer behind it" if kind is not Kind.FLOAT else "no exact integer form in this version"
                yield Decision(where=module_path(node) or node.name, what=f"{_short_op(node)} left in float", why=why)


def _merge(sets: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Union of overlapping sets."""
    merged: list[dict[str, None]] = []
    for names in sets:
        current = dict.fromkeys(names)
        rest: list[dict[str, None]] = []
        for other in merged:
            if other.keys() & current.keys():
                current = {**other, **current}
            else:
                rest.append(other)
        merged = [*rest, current]
    return tuple(tuple(names) for names in merged)


def _short_op(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").removeprefix("mixport.").split(".")[0]


def _reason(kind: str, bits: int, scheme: Scheme) -> str:
    if kind == "stream":
        return f"residual stream that feeds a float normalisation: {bits}-bit codes"
    if kind == "carrier":
        return f"branches meet: {bits}-bit carrier"
    if bits == scheme.activation_bits:
        return f"read by a layer: {scheme.name}"
    return f"read by the first or last layer: {bits} edge bits"
