"""mixport inspect: every node of a file, integer or float, and why; of a bundle also what reconstruction did
to MLPs and units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixport.cli.console import Console
from mixport.cli.node_table import show_nodes
from mixport.cli.options.shared import JsonFlag
from mixport.records.errors import BadInputError

if TYPE_CHECKING:
    from mixport.release.choice_entries import ReconstructionEntry
    from mixport.validate.conformance.used_forms import UsedForm


def model_file(path: Path) -> Path:
    """The ONNX file that a path names: itself, or a bundle's model.onnx. Raises BadInputError."""
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise BadInputError(
            f"{path} is neither an ONNX file nor a bundle", hint="mixport inspect FILE.onnx or BUNDLE"
        )
    return file


def _reconstruction(path: Path) -> ReconstructionEntry | None:
    """What was learned for a bundle; None for a file, a folder without a manifest, or where nothing was."""
    from mixport.release.bundle import read_bundle

    try:
        return read_bundle(path).manifest.reconstruction
    except BadInputError:
        return None


def _show_learned(console: Console, found: ReconstructionEntry) -> None:
    """A table of the MLPs, where there are any, and one of the units."""
    mlps = [
        [mlp.name, len(mlp.layers) or "keeps GELU", mlp.error_before, mlp.error_after] for mlp in found.mlps
    ]
    units = [
        [
            unit.name,
            len(unit.layers),
            len(unit.sites),
            unit.batch,
            unit.dropped,
            unit.error_before,
            unit.error_after,
        ]
        for unit in found.units
    ]
    for head, rows in (
        (["MLP", "layers learned", "error with ReLU", "error learned"], mlps),
        (
            [
                "unit",
                "layers learned",
                "scales learned",
                "images a step",
                "float values",
                "error before",
                "error learned",
            ],
            units,
        ),
    ):
        if rows:
            console.line("")
            console.table(head, rows)


def _show_oldest(console: Console, file: Path, used: Iterable[UsedForm]) -> None:
    """The oldest onnxruntime that is known to give the codes of a file of mixport's, and why."""
    from mixport.validate.conformance.oldest_runtime import contents_of, oldest_onnxruntime
    from mixport.validate.interpreter.graph import read_graph

    contents = contents_of(read_graph(file), used)
    if contents is not None:
        oldest = oldest_onnxruntime(contents)
        console.line("")
        console.line(f"oldest onnxruntime known to give the same codes: {oldest.version} ({oldest.why})")


def inspect(
    model: Annotated[Path, typer.Argument(help="ONNX file or bundle.", metavar="MODEL.onnx|BUNDLE")],
    json: JsonFlag = False,
) -> None:
    """Show every node: integer or float, bits, accumulator bound, portability class, and why.

    Also the oldest onnxruntime that is known to give the same codes, from what is in the file.

    Of a bundle whose rounding was learned, also the error of each unit before and after, and of each MLP that
    has ReLU for GELU.
    """
    console = Console(json=json)
    file = model_file(model)

    from mixport.records.graph_facts import FileFacts
    from mixport.validate.conformance.evidence import with_evidence
    from mixport.validate.conformance.used_forms import used_forms
    from mixport.validate.inspect import describe
    from mixport.validate.proof.prove import prove

    used = used_forms(file)

    def judge(facts: FileFacts, /) -> Mapping[str, Any]:
        return with_evidence(prove(facts), used, portable=True)

    nodes = describe(file, prove=judge)
    if json:
        console.document([asdict(node) for node in nodes])
        return
    show_nodes(console, nodes)
    _show_oldest(console, file, used)
    learned = _reconstruction(model)
    if learned is not None:
        _show_learned(console, learned)
