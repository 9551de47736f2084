"""Decide which tensors get codes, at which width, and which of them share a scale: from the graph alone,
before any statistics.

Demand flows backwards. A layer or product asks its inputs for codes of A bits ("compute"); an add, multiply,
pool, concat or table asks for 8-bit carriers; float operators ask for nothing. Adds whose result feeds a
float normalisation are streams: 16-bit codes, and the addition itself is plain IEEE float between
DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from torch import fx

from mixport.arithmetic.attention_softmax import numerator_params, reach
from mixport.model.programs.fx_graph import argument, aten, module_path, only_user, tensor_arg
from mixport.quantize.graph.marks import DIVIDES_LATER, short_op
from mixport.quantize.graph.roles import Kind, clamp_bounds
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.quantize.sites.scale_groups import scale_groups
from mixport.quantize.sites.site_plan import QuantizationPlan, ScaleGroup, SitePlan, birth_name, unique_name
from mixport.records.choices.scheme import Role, Scheme
from mixport.records.decision import Decision

__all__ = ["QuantizationPlan", "ScaleGroup", "SitePlan", "make_plan"]

_Use = Literal["stream", "carrier", "compute"]
_Demands = dict[tuple[_Use, int], list[tuple[fx.Node, fx.Node]]]
"""(use, bits) that one tensor is asked for -> (consumer, operand) pairs that ask."""

_WIDEST_FIRST: tuple[_Use, ...] = ("stream", "carrier", "compute")


def make_plan(
    graph: fx.GraphModule,
    scheme: Scheme,
    *,
    stream_bits: int,
    portable: bool = True,
    activation_bits: Mapping[str, int] = MappingProxyType({}),
) -> QuantizationPlan:
    """Plan all activation sites of a canonical float graph.

    Args:
        graph: see above.
        scheme: widths.
        stream_bits: of residual streams.
        portable: as in the target.
        activation_bits: of what layers and products read of a tensor, by the name of its first site, where
            that is not what the scheme says.
    """
    flow = CodeFlow(graph)
    planner = _Planner(
        flow=flow,
        scheme=scheme,
        stream_bits=stream_bits,
        ends=_ends(flow),
        activation_bits=activation_bits,
    )
    sites = tuple(planner.sites())
    return QuantizationPlan(
        kinds=flow.kinds,
        sites=sites,
        groups=scale_groups(flow, sites, portable=portable),
        edges=flow.weight_edges(scheme.edge_convention),
        decisions=tuple(_float_decisions(flow)),
        free_tensors=frozenset(planner.names.values()),
    )


@dataclass(frozen=True, kw_only=True)
class _Planner:
    flow: CodeFlow
    scheme: Scheme
    stream_bits: int
    ends: frozenset[fx.Node]
    activation_bits: Mapping[str, int]

    @cached_property
    def names(self) -> dict[fx.Node, str]:
        """Name of the first site of each tensor that a layer or a product reads."""
        used = {"input", "output"}
        readers = [node for node in self.flow.nodes if node in self.flow.integer]
        every = {self.flow.birth(operand) for node in readers for operand in self.flow.code_operands(node)}
        every |= {self.flow.carrier_tensor(node) for node in readers if self._needs_codes(node)}
        names = {
            node: unique_name(birth_name(self._born(node), self.flow.kinds[self._born(node)]), used)
            for node in self.flow.nodes
            if node in every and self.flow.kinds[node] is not Kind.CONSTANT
        }
        read = {
            self.flow.birth(operand)
            for node in readers
            if self.flow.kinds[node] in {Kind.LAYER, Kind.PRODUCT}
            for operand in self.flow.code_operands(node)
        }
        return {node: name for node, name in names.items() if node in read}

    def sites(self) -> Iterator[SitePlan]:
        """Sites of all tensors, in graph order."""
        demands = self._demands()
        used = {"input", "output"}
        for node in self.flow.nodes:
            if node in demands:
                yield from self._sites_of(node, demands[node], used)

    # -- demands ---------------------------------------------------------------------------------------------

    def _demands(self) -> dict[fx.Node, _Demands]:
        tensors: dict[fx.Node, _Demands] = {}
        integer = [node for node in self.flow.nodes if node in self.flow.integer]
        for node in integer:
            for operand in self.flow.code_operands(node):
                demands = tensors.setdefault(self.flow.birth(operand), {})
                demands.setdefault(self._demand_of(node, operand), []).append((node, operand))
        for node in integer:
            self._ask_for_result(tensors, node)
        return tensors

    def _demand_of(self, node: fx.Node, operand: fx.Node) -> tuple[_Use, int]:
        if self.flow.kinds[node] in {Kind.LAYER, Kind.PRODUCT}:
            return "compute", self._compute_bits(node, operand)
        if self.flow.kinds[node] is Kind.NORM and self.flow.reads_stream(node):
            return "stream", self.stream_bits
        return "carrier", self.scheme.carrier_bits

    def _compute_bits(self, node: fx.Node, operand: fx.Node) -> int:
        own = self.activation_bits.get(self.names.get(self.flow.birth(operand), ""))
        if own is not None:
            return own
        is_edge = self.flow.reads_edge(node, operand, self.scheme.edge_convention)
        return self.scheme.edge_bits if is_edge else self.scheme.activation_bits

    def _needs_codes(self, node: fx.Node) -> bool:
        """True for operators that only run on integers when their result is quantised."""
        kind = self.flow.kinds[node]
        is_convolution = kind is Kind.LAYER and "conv" in str(node.target)
        is_table = kind is Kind.UNARY and self.flow.ends_chain(node)
        return kind in {Kind.ADD, Kind.MULTIPLY, Kind.POOL} or is_convolution or is_table

    def _born(self, node: fx.Node) -> fx.Node:
        """Where the codes of a tensor are named after: what an absorbed clamp reads, else the tensor."""
        if self.flow.kinds[node] is Kind.CLAMP and clamp_bounds(node) is not None:
            producer = tensor_arg(node, 0)
            if only_user(producer) is not None:  # a clamp among other readers is its own birth
                return producer
        return node

    def _ask_for_result(self, tensors: dict[fx.Node, _Demands], node: fx.Node) -> None:
        """Operators that only run on integers when their result is quantised ask for it themselves."""
        if not self._needs_codes(node):
            return
        kind = self.flow.kinds[node]
        demands = tensors.setdefault(self.flow.carrier_tensor(node), {})
        if node in self.flow.streams:
            demands.setdefault(("stream", self.stream_bits), [])
        elif kind is Kind.ADD or not demands:
            # The sum of two carriers stays a carrier: its scale divides theirs, which 4-bit codes could not
            # keep.
            demands.setdefault(("carrier", self.scheme.carrier_bits), [])

    # -- sites -----------------------------------------------------------------------------------------------

    def _sites_of(self, node: fx.Node, demands: _Demands, used: set[str]) -> Iterator[SitePlan]:
        kind = self.flow.kinds[node]
        if kind is Kind.CONSTANT:
            return
        bounds = clamp_bounds(node) if kind is Kind.CLAMP else None
        producer = tensor_arg(node, 0) if bounds is not None else node
        born = self._born(node)
        op = "input" if kind is Kind.INPUT else short_op(born)
        first: SitePlan | None = None
        for use, bits in self._ordered(demands, kind):
            reason = _reason(use, bits, self.scheme)
            if use == "compute" and self.names.get(node) in self.activation_bits:
                reason = f"read by a layer: {bits} bits of the width table"
            if use == "stream":
                # Codes of 16 bits have no integer Clip in ONNX Runtime: the clamp itself stays, in float
                # before the quantiser.
                bounds, producer = None, node
            if first is None:
                chain = self.flow.chain(node) if kind is Kind.UNARY else ()
                first = SitePlan(
                    name=unique_name(birth_name(born, self.flow.kinds[born]), used),
                    tensor=node,
                    source=producer,
                    op=op,
                    role=_role(kind, use, is_table=bool(chain)),
                    bits=bits,
                    bounds=bounds,
                    base=None,
                    consumers=(),
                    chain=chain,
                    reason=reason,
                    is_output=node in self.ends,
                    reach=self._reach(node),
                    fixed=numerator_params(bits) if kind is Kind.NUMERATORS else None,
                )
                if kind is not Kind.CONCAT:  # its operands carry the codes
                    yield first
            elif use != "compute" or bits != first.bits:
                yield SitePlan(
                    name=unique_name(f"{first.name}.a{bits}", used),
                    tensor=node,
                    source=node,
                    op=op,
                    role=_role(kind, use, is_table=False),
                    bits=bits,
                    bounds=bounds,
                    base=first.name,
                    consumers=tuple(demands.get((use, bits), ())),
                    chain=(),
                    reason=reason,
                )

    def _reach(self, node: fx.Node) -> float | None:
        """Scores far below the largest of their row weigh nothing, whatever they are."""
        readers = [user for user, _ in self.flow.readers(node)]
        if len(readers) != 1 or self.flow.kinds[readers[0]] is not Kind.NUMERATORS:
            return None
        bits = self.activation_bits.get(self.names.get(readers[0], ""), self.scheme.activation_bits)
        return reach(bits) / float(argument(readers[0], 1, "factor"))

    def _ordered(self, demands: _Demands, kind: Kind) -> list[tuple[_Use, int]]:
        """Demands from the widest use to the narrowest; the codes of a concat start as its operands'
        carriers.
        """
        ordered = sorted(demands, key=lambda demand: (_WIDEST_FIRST.index(demand[0]), -demand[1]))
        if kind is Kind.CONCAT:
            return [
                ("carrier", self.scheme.carrier_bits),
                *(demand for demand in ordered if demand[0] == "compute"),
            ]
        return ordered


def _ends(flow: CodeFlow) -> frozenset[fx.Node]:
    """Nodes behind which nothing runs on integers: what they give is the output, or a float function of them
    is.
    """
    ends: set[fx.Node] = set()
    for node in reversed(flow.nodes):
        if all(user in ends and user not in flow.integer for user in node.users):
            ends.add(node)
    return frozenset(ends)


def _role(kind: Kind, use: _Use, *, is_table: bool) -> Role:
    if kind is Kind.INPUT:
        return "input"
    if is_table:
        return "table"
    return "compute" if use == "compute" else "carrier"


def _reason(use: _Use, bits: int, scheme: Scheme) -> str:
    if use == "stream":
        return f"residual stream, or input of a normalisation: {bits}-bit codes"
    if use == "carrier":
        return f"branches meet: {bits}-bit carrier"
    if bits == scheme.activation_bits:
        return f"read by a layer: {scheme.name}"
    return f"at an end of the model ({scheme.edge_convention} convention): {bits} edge bits"


def _float_decisions(flow: CodeFlow) -> Iterator[Decision]:
    for node, kind in flow.kinds.items():
        ours = DIVIDES_LATER in node.meta
        is_value = (
            node.op == "call_function"
            and not ours
            and kind not in {Kind.CONSTANT, Kind.MOVE}
            and node.meta.get("is_float", False)
        )
        if (
            is_value and node not in flow.integer and node.target is not aten.softmax.int
        ):  # softmax_layernorm says what became of it
            why = (
                "no integer consumer behind it"
                if kind is not Kind.FLOAT
                else "no exact integer form in this version"
            )
            yield Decision(
                where=module_path(node) or node.name, what=f"{short_op(node)} left in float", why=why
            )
