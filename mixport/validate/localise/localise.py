"""From a divergence to its place: the node, the codes it read, the exact sum, and the likely cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from mixport.records.validation_report import Divergence, Localisation, Operand
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.graph import Array, Graph, Node
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.kernels_movement import MOVES
from mixport.validate.localise.causes import (
    Finding,
    find_cause,
    float_operators,
    fused_add,
    refused,
    wrong_shape,
)
from mixport.validate.localise.element import Element, element_of

_MOST_NODES = 64
_CODE_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Concat"})


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The run that showed a divergence.

    Attributes:
        feeds: inputs of the model by name.
        expected: tensors by the interpreter.
        got: tensors by the runtime.
        overrides: codes given to the interpreter behind float islands.
        refused: the runtime's message where it did not run the model.
    """

    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]
    got: Mapping[str, Array]
    overrides: Mapping[str, Array] = field(default_factory=dict[str, Array])
    refused: str = ""


def localise(model: Path | str | onnx.ModelProto, divergence: Divergence, evidence: Evidence) -> Localisation:
    """Say where a runtime departs, and why it likely does.

    Args:
        model: the file that ran, or the unit cut out of it.
        divergence: the first one in graph order; its index is that of the batch in `evidence`.
        evidence: what went in and what came out.
    """
    interpreter = Interpreter(model)
    graph = interpreter.plan.graph
    site, index = divergence.site, divergence.index
    unit = next((unit for unit in interpreter.units if site in (unit.output, unit.site)), None)
    node = unit.node if unit is not None else graph.producer.get(site)
    operands: tuple[Operand, ...] = (
        () if unit is None else tuple(Operand(name=i.name, code=None, count=0) for i in unit.inputs)
    )
    element = Element(operands=operands)
    if evidence.refused:
        found = refused(evidence.refused)
    elif not index:
        found = wrong_shape(int(divergence.expected), int(divergence.got))
    elif unit is not None:
        element, found = _in_unit(model, unit, divergence, evidence)
    else:
        element, found = _in_floats(interpreter, divergence, evidence)
    return Localisation(
        site=site,
        index=index,
        executor=divergence.executor,
        inputs=divergence.inputs,
        expected=divergence.expected,
        got=divergence.got,
        node=node.name if node is not None else site,
        op=node.op if node is not None else "input",
        operands=element.operands,
        accumulator=element.accumulator,
        exact=element.exact,
        cause=found.cause,
        explanation=found.explanation,
        repair=found.repair,
    )


def _in_unit(
    model: Path | str | onnx.ModelProto, unit: FusedUnit, divergence: Divergence, evidence: Evidence
) -> tuple[Element, Finding]:
    names = [code_input.name for code_input in unit.inputs]
    # What a unit reads need not be a site: a pooled or transposed code tensor is recorded only where it is
    # asked for.
    watching = Interpreter(model, watch=names)
    codes = watching.run_feeds(evidence.feeds, overrides=evidence.overrides).codes
    if any(name not in codes for name in names):
        element = Element(operands=tuple(Operand(name=name, code=None, count=0) for name in names))
    else:
        element = element_of(unit, codes, divergence.index)
    tensors = None
    if divergence.site in evidence.expected and divergence.site in evidence.got:
        tensors = (evidence.expected[divergence.site], evidence.got[divergence.site])
    return element, find_cause(
        unit,
        element,
        expected=divergence.expected,
        got=divergence.got,
        tensors=tensors,
        index=divergence.index,
    )


def _in_floats(
    interpreter: Interpreter, divergence: Divergence, evidence: Evidence
) -> tuple[Element, Finding]:
    """A tensor that no fused unit gives: the float operators before it, back to the codes they start from."""
    nodes, sources = _ancestors(
        interpreter.plan.graph, divergence.site, frozenset(interpreter.sites) - {divergence.site}
    )
    operands: list[Operand] = []
    for name in sources:
        codes = evidence.expected.get(name)
        same = (
            codes is not None
            and codes.shape == evidence.expected[divergence.site].shape
            and codes.dtype.kind in "iu"
        )
        operands.append(
            Operand(
                name=name,
                code=int(codes[divergence.index]) if codes is not None and same else None,
                count=1 if same else 0,
            )
        )
    names = tuple(
        f"{node.op} {node.name}" for node in nodes if node.op not in MOVES and node.op not in _CODE_OPERATORS
    )
    if not names and any(name in {port.name for port in interpreter.plan.graph.inputs} for name in sources):
        names = ("QuantizeLinear of the input",)
    difference = abs(divergence.got - divergence.expected)
    only_adds = bool(names) and all(name.startswith("Add ") for name in names)
    return Element(operands=tuple(operands)), fused_add(
        ""
    ) if only_adds and difference == 1 else float_operators(names, difference=difference)


_ONE_TENSOR = frozenset({"Reshape", "Expand", "Slice", "Squeeze", "Unsqueeze", "Tile"})
"""Operators whose other inputs are sizes and places."""


def _ancestors(graph: Graph, site: str, stops: frozenset[str]) -> tuple[list[Node], list[str]]:
    nodes: dict[int, Node] = {}
    sources: dict[str, None] = {}
    inputs = {port.name for port in graph.inputs}
    waiting = [site]
    while waiting and len(nodes) < _MOST_NODES:
        name = waiting.pop()
        if name in stops or name in inputs:
            sources[name] = None
            continue
        node = graph.producer.get(name)
        if node is None or node.index in nodes:
            continue
        nodes[node.index] = node
        # Sizes and places are no values: what computes them cannot make a code differ.
        data = node.inputs[:1] if node.op in _ONE_TENSOR else node.inputs
        waiting.extend(other for other in data if other)
    return [nodes[index] for index in sorted(nodes)], list(sources)
