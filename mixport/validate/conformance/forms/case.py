"""What the kit is made of: forms, their graphs, and the runs of each graph with the answers that mixport's
arithmetic gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixport.validate.interpreter.graph import Array

DrawnFolder = Literal[
    "layers", "carriers", "codes", "movement", "float", "double", "composites", "functions", "unused"
]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One set of inputs of a graph.

    Attributes:
        kind: what the inputs aim at: random, near-tie, saturation, all-codes, all-pairs ...
        feeds: arrays by input name.
        expected: arrays by output name, never from a runtime.
    """

    kind: str
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class FormCase:
    """One graph with its runs.

    Attributes:
        name: what is special about this graph, e.g. odd-zero-points; unique within its form.
        model: a serialised ONNX file.
        runs: at least one.
    """

    name: str
    model: bytes
    runs: tuple[Run, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(self.runs[0].expected)

    @property
    def values(self) -> int:
        """Numbers that are compared."""
        return sum(array.size for run in self.runs for array in run.expected.values())


@dataclass(frozen=True, kw_only=True)
class Form:
    """One operator form: an operator with the types, widths and neighbours that decide which kernel runs it.

    Attributes:
        name: stable identifier; results are kept under it.
        family: for tables.
        about: the form in words.
        emitted: the portable lowering writes it, so that a difference is a failure.
        make: builds its graphs; every random choice comes from the generator.
    """

    name: str
    family: DrawnFolder
    about: str
    emitted: bool
    make: Callable[[np.random.Generator], tuple[FormCase, ...]]
