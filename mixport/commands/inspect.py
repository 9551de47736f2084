"""mixport inspect: every node of a file, integer or float, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mixport.commands.flags import JsonFlag
from mixport.console import Console
from mixport.errors import BadInputError


def model_file(path: Path) -> Path:
    """The ONNX file that a path names: itself, or a bundle's model.onnx. Raises BadInputError."""
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise BadInputError(f"{path} is neither an ONNX file nor a bundle", hint="mixport inspect FILE.onnx or BUNDLE")
    return file


def inspect(
    model: Annotated[Path, typer.Argument(help="ONNX file or bundle.", metavar="MODEL.onnx|BUNDLE")],
    json: JsonFlag = False,
) -> None:
    """Show every node: integer or float, bits, accumulator bound, portability class, and why."""
    console = Console(json=json)
    file = model_file(model)

    from mixport.conformance.evidence import with_evidence
    from mixport.conformance.used_forms import used_forms
    from mixport.file_facts import FileFacts
    from mixport.proof.prove import prove
    from mixport.validate.inspect import describe

    used = used_forms(file)

    def judge(facts: FileFacts, /) -> Mapping[str, Any]:
        return with_evidence(prove(facts), used, portable=True)

    nodes = describe(file, prove=judge)
    if json:
        console.document([asdict(node) for node in nodes])
        return
    console.table(
        ["output", "op", "runs in", "weight bits", "activation bits", "bound", "portability", "why"],
        [
            [node.output, node.op, node.compute, node.weight_bits, node.activation_bits, node.accumulator_bound, node.portability, node.why]
            for node in nodes
        ],
    )
