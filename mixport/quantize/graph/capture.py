"""Capture a float module as one flat ATen graph (torch.export) and bring it to the forms that quantisation
knows.
"""

# torch.export leaves parts of its own signatures without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from mixport.model.programs.attribute_names import free_attributes
from mixport.model.programs.fx_graph import module_path, record_shapes
from mixport.quantize.graph.canonical import canonicalise
from mixport.quantize.graph.precision import check_precision
from mixport.quantize.graph.unrunnable import refuse_unrunnable
from mixport.records.decision import Decision
from mixport.records.errors import UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A float graph ready for quantisation.

    Attributes:
        graph: ATen calls only; node.meta["shape"] holds each tensor's shape for the traced batch.
        example_batch: batch the shapes were recorded with.
        dynamic_batch: True when the graph holds for every batch.
        decisions: rewrites applied, with reasons.
    """

    graph: fx.GraphModule
    example_batch: int
    dynamic_batch: bool
    decisions: tuple[Decision, ...]


def capture(module: nn.Module, *, input_shape: tuple[int, int, int, int], dynamic_batch: bool) -> Captured:
    """Export `module` and canonicalise the graph.

    Args:
        module: eval mode, one float32 input [N, 3, H, W], one output.
        input_shape: [1, 3, H, W].
        dynamic_batch: try a symbolic batch first; a model that fixes its batch is captured at 1 and says so.

    Raises:
        UnsupportedModelError: torch.export cannot capture the module, a layer computes in half precision, or
            it holds an operator in a form that no runtime has.
    """
    notes: list[Decision] = []
    program = None
    if dynamic_batch:
        try:
            program = export_program(module, input_shape=input_shape, dynamic_batch=True)
        except Exception as error:  # torch.export raises many types; the static attempt decides
            notes.append(
                Decision(
                    where="model",
                    what="batch fixed at 1",
                    why=f"a symbolic batch could not be exported: {_first_line(error)}",
                )
            )
    dynamic = program is not None
    if program is None:
        try:
            program = export_program(module, input_shape=input_shape, dynamic_batch=False)
        except Exception as error:
            raise UnsupportedModelError(
                f"torch.export cannot capture the model: {_first_line(error)}",
                hint="make forward free of data-dependent control flow",
            ) from error
    free_attributes(program)
    graph = program.run_decompositions({}).module(check_guards=False)
    check_precision(graph)
    notes.extend(_control_flow(graph))
    batch = 2 if dynamic else 1
    example = torch.zeros((batch, *input_shape[1:]))
    record_shapes(graph, example)
    notes.extend(canonicalise(graph))
    record_shapes(graph, example)
    refuse_unrunnable(graph)
    return Captured(graph=graph, example_batch=batch, dynamic_batch=dynamic, decisions=tuple(notes))


def _control_flow(graph: fx.GraphModule) -> list[Decision]:
    """What torch.cond chooses between is a graph of its own, which quantisation does not enter."""
    why = (
        "layers inside its branches are not quantised; a model that chooses by the image cannot have "
        "them measured"
    )
    return [
        Decision(where=module_path(node) or node.name, what="torch.cond left in float", why=why)
        for node in graph.graph.nodes
        if node.target is torch.ops.higher_order.cond
    ]


def export_program(
    module: nn.Module, *, input_shape: tuple[int, int, int, int], dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """torch.export with a symbolic or a fixed batch axis. Whatever torch.export raises passes through."""
    example = torch.zeros((2 if dynamic_batch else 1, *input_shape[1:]))
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    with quiet_torch(), torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)


@contextmanager
def quiet_torch() -> Generator[None, None, None]:
    """Hold back torch's own chatter during an export; errors still raise."""
    loggers = [
        logging.getLogger(name)
        for name in (
            "torch.export",
            "torch.onnx",
            "torch._dynamo",
            "torch.fx.experimental.symbolic_shapes",
            "onnxscript",
        )
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
