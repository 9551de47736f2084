"""Emit: an assignment written into the graph, exported, and described. Nothing is chosen here but what the
exact arithmetic of the neighbours fixes: moves of scales by units in the last place, forms of tables.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from pydantic import TypeAdapter

from mixport.model.programs.fx_graph import clean
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.emit.insert import insert_activations, insert_weights
from mixport.quantize.emit.loss_search import FloatParts, search_loss
from mixport.quantize.emit.signed_codes import as_int8, to_int8
from mixport.quantize.emit.softmax_layernorm import composites_of, insert_softmax_layernorm
from mixport.quantize.graph.capture import export_program
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.quantized_model import QuantizedModel

PROGRAM, RECORD = "program.pt2", "quantized.json"
"""Files that `emit` writes."""


def emit(
    prepared: Prepared, assignment: Assignment, batches: CalibrationBatches, *, workdir: Path
) -> QuantizedModel:
    """Write quantisers and integers into the prepared graph; program.pt2 and quantized.json go to `workdir`.

    Args:
        prepared: is used up: its graph is rewritten in place.
        assignment: every choice, for the same plan.
        batches: a few images, to find where the error of a bad output arises.
        workdir: existing folder.
    """
    model, captured, target, plan = prepared.model, prepared.captured, prepared.target, prepared.plan
    graph, params = captured.graph, assignment.params
    parts = FloatParts.of(graph, plan, assignment.widths)
    sites = insert_activations(graph, plan, params, target)
    weights, moved = insert_weights(graph, assignment.widths, assignment.integers, target)
    few = batches.few()
    loss = search_loss(graph, parts, params, lambda: batches.of(few, dynamic_batch=captured.dynamic_batch))
    floats = insert_softmax_layernorm(graph, plan, portable=target.portable)
    clean(graph)
    if target.activations.storage == "int8":
        to_int8(graph)
        sites = [as_int8(site) for site in sites]
    program = export_program(graph, input_shape=model.input_shape, dynamic_batch=captured.dynamic_batch)
    archive = io.BytesIO()  # torch's own file writer aborts the process on a full disk
    torch.export.save(program, archive)
    (workdir / PROGRAM).write_bytes(archive.getvalue())
    record = QuantizedModel(
        program_path=workdir / PROGRAM,
        signature=prepared.signature,
        scheme=prepared.scheme,
        activations=tuple(sites),
        weights=tuple(weights),
        decisions=(*prepared.decisions, *assignment.decisions, *moved, *floats),
        input_shape=(captured.example_batch, *model.input_shape[1:]),
        dynamic_batch=captured.dynamic_batch,
        composites=composites_of(graph, batch=captured.example_batch),
        reconstruction=assignment.reconstruction,
        float_bytes=model.float_bytes,
        width_search=assignment.search,
        loss=loss,
    )
    (workdir / RECORD).write_bytes(TypeAdapter(QuantizedModel).dump_json(record, indent=1))
    return record
