"""The oldest onnxruntime that is known to give a file's codes, from what is in the file.

Measured on x64 with AVX-512 VNNI, November 2026: docs/runtimes.md has the models, the versions on both sides
of each step, and what the older one says. Versions between two that were tried count as too old. It is a
table of kinds of files: `mixport validate BUNDLE --runtime native@VERSION` compares the codes of one.

1. The header alone: opset 13 to 19 with an IR version up to 9 runs on 1.16.3, the oldest that was tried;
   opset 20 and 21, or IR 10, on 1.18.0; newer ones on 1.24.1.
2. A MatMul at opset 20 or newer, and 16-bit codes: 1.20.0. Versions before fuse QDQ around a MatMul to an
   operator for which they have no kernel at this opset.
3. INT4: 1.23.2. Versions before have no Cast from it.
4. INT2: 1.24.1. Versions before refuse its IR version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mixport.validate.interpreter.graph import Graph

_PRODUCER = "mixport"
_NARROW = (("INT2", (1, 24, 1)), ("INT4", (1, 23, 2)))
_WIDE = frozenset({"INT16", "UINT16"})


@dataclass(frozen=True, kw_only=True)
class FileContents:
    """What decides which runtimes read a file.

    Attributes:
        opset: of the default domain.
        ir_version: of the file.
        storages: ONNX types of initialisers, as INT4.
        operators: of its nodes.
    """

    opset: int
    ir_version: int
    storages: frozenset[str]
    operators: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class OldestRuntime:
    """A version of onnxruntime, and what of the file asks for it."""

    version: str
    why: str


def contents_of(graph: Graph) -> FileContents | None:
    """What is in a file; None where mixport did not write it: the table is of forms that lowering emits."""
    if graph.proto.producer_name != _PRODUCER:
        return None
    return FileContents(
        opset=graph.opset,
        ir_version=graph.proto.ir_version,
        storages=frozenset(graph.stored.values()),
        operators=frozenset(node.op for node in graph.nodes),
    )


def oldest_onnxruntime(contents: FileContents) -> OldestRuntime:
    """The newest of what the parts of a file ask for; see the module's cases 1 to 4."""
    version, why = max(_needs(contents), key=lambda need: need[0])
    return OldestRuntime(version=".".join(map(str, version)), why=why)


def _needs(contents: FileContents) -> Iterator[tuple[tuple[int, int, int], str]]:
    yield _of_header(contents), f"opset {contents.opset}, IR {contents.ir_version}"
    newer = contents.opset >= 20
    if newer and "MatMul" in contents.operators:
        yield (1, 20, 0), f"MatMul at opset {contents.opset}"
    if contents.storages & _WIDE:
        yield (1, 20, 0), "16-bit codes"
    for narrow, version in _NARROW:
        if {narrow, f"U{narrow}"} & contents.storages:
            yield version, f"{narrow} weights"


def _of_header(contents: FileContents) -> tuple[int, int, int]:
    if contents.opset <= 19 and contents.ir_version <= 9:
        return (1, 16, 3)
    return (1, 18, 0) if contents.opset <= 21 and contents.ir_version <= 10 else (1, 24, 1)
