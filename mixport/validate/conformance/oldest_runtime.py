"""The oldest onnxruntime that is known to give a file's codes, from what is in the file.

Measured on x64 with AVX-512 VNNI, November 2026, by the conformance kit on 1.18.0, 1.19.2, 1.20.0, 1.20.1,
1.21.0, 1.21.1, 1.22.1, 1.23.0, 1.23.2 and 1.24.1, and by whole models: docs/runtimes.md has them, with what
the older version says. Versions between two that were tried count as too old. It is a table of kinds of
files: `mixport validate BUNDLE --runtime native@VERSION` compares the codes of one.

1. The header alone: opset 13 to 19 with an IR version up to 9 runs on 1.16.3, the oldest that was tried;
   opset 20 and 21, or IR 10, on 1.18.0; newer ones on 1.24.1.
2. Products of two activations at opset 20 or newer: 1.20.0. Versions before fuse QDQ around a MatMul to an
   operator for which they have no kernel at this opset.
3. 16-bit codes: 1.20.0, where a transformer that has them was first exact. The kit's own form of rows is
   exact from 1.21.0 on only, since its graph holds a float32 Sqrt; lowering writes a float64 one.
4. Square roots in float32: 1.21.0. Versions before round some of them otherwise.
5. DepthToSpace and SpaceToDepth of codes: 1.28.0. Versions before have no kernel of the latter for uint8.
6. INT4: 1.23.2. Versions up to 1.22.1 have no Cast from it; of 1.23.0 only the kit was run.
7. INT2: 1.24.1. Versions before refuse its IR version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mixport.validate.conformance.used_forms import UsedForm
from mixport.validate.interpreter.graph import Graph

Version = tuple[int, int, int]

_PRODUCER = "mixport"
_FORMS: Mapping[str, tuple[Version, str]] = MappingProxyType(
    {
        "float.sqrt": ((1, 21, 0), "Sqrt of float32"),
        "move.depth-to-space": ((1, 28, 0), "SpaceToDepth or DepthToSpace of codes"),
    }
)
"""Forms of the kit that are exact from a version on, whatever the opset."""
_PRODUCT, _PRODUCT_OPSET = "matmul.dynamic", 20
_STORAGES: Mapping[str, tuple[Version, str]] = MappingProxyType(
    {
        "INT16": ((1, 20, 0), "16-bit codes"),
        "UINT16": ((1, 20, 0), "16-bit codes"),
        "INT4": ((1, 23, 2), "INT4 weights"),
        "INT2": ((1, 24, 1), "INT2 weights"),
    }
)


@dataclass(frozen=True, kw_only=True)
class FileContents:
    """What decides which runtimes give the codes of a file.

    Attributes:
        opset: of the default domain.
        ir_version: of the file.
        storages: ONNX types of initialisers, as INT4.
        forms: of the conformance kit.
    """

    opset: int
    ir_version: int
    storages: frozenset[str]
    forms: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class OldestRuntime:
    """A version of onnxruntime, and what of the file asks for it."""

    version: str
    why: str


def contents_of(graph: Graph, used: Iterable[UsedForm]) -> FileContents | None:
    """What is in a file; None where mixport did not write it: the table is of forms that lowering emits.

    Args:
        graph: the file.
        used: its forms, as `used_forms` gives them.
    """
    if graph.proto.producer_name != _PRODUCER:
        return None
    return FileContents(
        opset=graph.opset,
        ir_version=graph.proto.ir_version,
        storages=frozenset(graph.stored.values()),
        forms=frozenset(one.form for one in used if one.form is not None),
    )


def oldest_onnxruntime(contents: FileContents) -> OldestRuntime:
    """The newest of what the parts of a file ask for; see the module's cases 1 to 7."""
    version, why = max(_needs(contents), key=lambda need: need[0])
    return OldestRuntime(version=".".join(map(str, version)), why=why)


def _needs(contents: FileContents) -> Iterator[tuple[Version, str]]:
    yield _of_header(contents), f"opset {contents.opset}, IR {contents.ir_version}"
    if _PRODUCT in contents.forms and contents.opset >= _PRODUCT_OPSET:
        yield (1, 20, 0), f"MatMul of codes at opset {contents.opset}"
    yield from (need for name, need in _STORAGES.items() if name in contents.storages)
    yield from (need for name, need in _FORMS.items() if name in contents.forms)


def _of_header(contents: FileContents) -> Version:
    if contents.opset <= 19 and contents.ir_version <= 9:
        return (1, 16, 3)
    return (1, 18, 0) if contents.opset <= 21 and contents.ir_version <= 10 else (1, 24, 1)
