"""What a plan consists of: the quantisers to insert, the carriers that share a scale, and how sites get their
names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.programs.fx_graph import module_path
from mixport.quantize.graph.marks import DIVIDES_LATER, FUNCTION_GATE, FUNCTION_RESULT, short_op
from mixport.quantize.graph.roles import Kind
from mixport.records.choices.scheme import Role
from mixport.records.decision import Decision

_NAMED_BY_MODULE = frozenset({Kind.LAYER, Kind.UNARY, Kind.CLAMP, Kind.POOL, Kind.FLOAT})
"""Kinds that are a module of their own: its path says enough. Others share the path with their neighbours."""


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
        consumers: (node, operand) pairs that read this site where it is not the tensor's first; empty
            otherwise.
        chain: nodes of the function that a table replaces, first to last.
        reason: why the site exists and has this width.
        is_output: nothing behind these codes runs on integers: they are the output, or a float function of
            them is.
        reach: how far below the largest of its row (last axis) a value still counts; None where every value
            does.
        fixed: parameters that what the codes are leaves no choice of; None for others.
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
    is_output: bool = False
    reach: float | None = None
    fixed: QuantParams | None = None


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
class QuantizationPlan:
    """The whole decision.

    Attributes:
        kinds: role of every node.
        sites: quantisers in graph order, each tensor's first one before its further ones.
        groups: carriers that share a scale.
        edges: first and last layers.
        decisions: what stays in float, with reasons.
        free_tensors: names of the sites of which layers and products may read other widths.
    """

    kinds: dict[fx.Node, Kind]
    sites: tuple[SitePlan, ...]
    groups: tuple[ScaleGroup, ...]
    edges: frozenset[fx.Node]
    decisions: tuple[Decision, ...]
    free_tensors: frozenset[str] = frozenset()


def birth_name(node: fx.Node, kind: Kind) -> str:
    """Name wanted for the codes born at `node`: its module path, with the operator where the path alone says
    too little.
    """
    if kind is Kind.INPUT:
        return "input.codes"
    path = module_path(node)
    if not path:
        return short_op(node)
    is_part = DIVIDES_LATER in node.meta or node.meta.get(FUNCTION_GATE, False)
    is_module = node.meta.get(FUNCTION_RESULT, False) or (kind in _NAMED_BY_MODULE and not is_part)
    return path if is_module else f"{path}.{short_op(node)}"


def unique_name(wanted: str, used: set[str]) -> str:
    """`wanted`, numbered from 2 where it is taken; the result is added to `used`."""
    name, n = wanted, 1
    while name in used:
        n += 1
        name = f"{wanted}_{n}"
    used.add(name)
    return name
