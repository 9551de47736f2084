"""The nodes of a file as text: one wide table, or a narrow one with the reasons below it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixport.cli.console import Console

if TYPE_CHECKING:
    from mixport.validate.inspect import NodeDescription

_WIDE = 160
"""Columns from which on a row with its reason mostly stays a line."""
_NAMED = 4
_SHORT = {
    "exact by proof": "proof",
    "exact on measured runtimes": "measured",
    "not portable": "no",
    "float": "float",
}
"""Portability class -> the word for it in a narrow table."""


def show_nodes(console: Console, nodes: Sequence[NodeDescription]) -> None:
    """Print every node. A narrow terminal gets short columns, and below them each reason once, with the
    outputs that it holds for.
    """
    if console.width >= _WIDE:
        console.table(
            ["output", "op", "runs in", "weight bits", "activation bits", "bound", "portability", "why"],
            [
                [
                    one.output,
                    one.op,
                    one.compute,
                    one.weight_bits,
                    one.activation_bits,
                    one.accumulator_bound,
                    one.portability,
                    one.why,
                ]
                for one in nodes
            ],
        )
        return
    console.table(
        ["output", "op", "runs in", "bits", "bound", "codes"],
        [
            [
                one.output,
                one.op,
                one.compute,
                _bits(one),
                one.accumulator_bound,
                _SHORT.get(one.portability or "", one.portability),
            ]
            for one in nodes
        ],
    )
    console.line("")
    console.line(
        "codes on other machines: equal by proof, equal on measured runtimes, no: not portable, "
        "float: no codes; why:"
    )
    for reason, outputs in _reasons(nodes).items():
        more = f" ... ({len(outputs)} in all)" if len(outputs) > _NAMED else ""
        console.line(f"  {reason}: {', '.join(outputs[:_NAMED])}{more}")


def _bits(node: NodeDescription) -> str:
    """As in a scheme: w4a8, a8 of a node without weights."""
    weights = f"w{node.weight_bits}" if node.weight_bits is not None else ""
    return weights + (f"a{node.activation_bits}" if node.activation_bits is not None else "")


def _reasons(nodes: Sequence[NodeDescription]) -> dict[str, list[str]]:
    """Each part of a reason -> outputs of the nodes that it is said of, in graph order."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        for part in filter(None, node.why.split("; ")):
            found.setdefault(re.sub(r"\binput \S+ is\b", "an input is", part), []).append(node.output)
    return found
