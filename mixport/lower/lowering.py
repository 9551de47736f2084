"""The lower stage: a quantised program in, one deployable ONNX file out. Integers are placed here, never
recomputed.
"""

# The path parameters of onnx and onnx-ir are PathLike without its parameter.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import PassError, Sequential
from onnx_ir.passes.common import TopologicalSortPass
from pydantic import TypeAdapter

from mixport.lower.expand_placeholders import ExpandPlaceholdersPass
from mixport.lower.onnx_graph import constant_of
from mixport.lower.operators.attention_softmax import gives_exponents
from mixport.lower.operators.tables import is_own_quantiser
from mixport.lower.opset_check import require_opset
from mixport.lower.passes.finish import FinishPass
from mixport.lower.passes.float_weights import KeepFloatWeightsPass
from mixport.lower.passes.movement import CancelRequantizePass, FoldPadPass, SinkDequantizePass
from mixport.lower.passes.older_forms import OlderFormsPass
from mixport.lower.passes.own_units import MovesInOwnUnitsPass
from mixport.lower.passes.reshapes import JoinReshapesPass
from mixport.lower.passes.separate_pairs import SeparatePairsPass
from mixport.lower.passes.share import ShareInitializersPass
from mixport.lower.passes.wide_codes import WideCodesPass, scale_undoing_factor
from mixport.lower.translate import translate
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import LoweredGraph, QuantizedModel
from mixport.records.signature import Signature
from mixport.records.targets import Target

_MODEL, _RECORD = "model.onnx", "lowered.json"
_EXPORT_OPSET = 21


def passes(
    target: Target, *, sites: frozenset[str], signature: Signature
) -> tuple[ir.passes.InPlacePass, ...]:
    """Every pass, in order: pads fold before codes sink, since a Conv takes its padding from real zero.

    What is stored once is decided when all initialisers are there.
    """
    return (
        ExpandPlaceholdersPass(target),
        FoldPadPass(),
        SinkDequantizePass() if target.graph.moves == "codes" else MovesInOwnUnitsPass(),
        CancelRequantizePass(),
        JoinReshapesPass(),
        WideCodesPass(),
        KeepFloatWeightsPass(),
        SeparatePairsPass(),
        ShareInitializersPass(),
        OlderFormsPass(target),
        FinishPass(target, sites, signature),
    )


def lower(quantized: QuantizedModel, target: Target, *, workdir: Path) -> LoweredGraph:
    """Lower to ONNX; writes model.onnx and lowered.json into `workdir`.

    Raises:
        UnsupportedModelError: an operator has no ONNX form.
        TargetError: the model needs what the target's opset does not have.
        InvariantError: a pass broke its promise, or an integer of the file differs from the program's.
    """
    model = translate(quantized, opset=_EXPORT_OPSET)
    sites = tuple(site.name for site in quantized.activations)
    try:
        chain = passes(target, sites=frozenset(sites), signature=quantized.signature)
        result = Sequential(*chain, TopologicalSortPass())(model)
    except PassError as error:
        raise InvariantError(f"lowering failed: {error.__cause__ or error}") from error
    check_sites(result.model, quantized)
    require_opset(ir.to_proto(result.model), target)
    path = workdir / _MODEL
    ir.save(result.model, path)
    onnx.checker.check_model(str(path), full_check=False)
    record = LoweredGraph(
        model_path=path,
        signature=quantized.signature,
        opset=result.model.opset_imports[""],
        ir_version=result.model.ir_version,
        sites=sites,
        decisions=_float_moves(result.model),
    )
    (workdir / _RECORD).write_bytes(TypeAdapter(LoweredGraph).dump_json(record, indent=1))
    return record


def read_lowered(workdir: Path) -> LoweredGraph:
    """Read back what `lower` wrote; paths follow the folder."""
    record = TypeAdapter(LoweredGraph).validate_json((workdir / _RECORD).read_bytes())
    fields: dict[str, Any] = {**record.__dict__, "model_path": workdir / _MODEL}
    return LoweredGraph(**fields)


def check_sites(model: ir.Model, quantized: QuantizedModel) -> None:
    """Every site of the program is a tensor of the file, with the same scale, zero point and range: round
    once.

    Its quantiser is looked at, where it has one, and every DequantizeLinear that reads it, but for the one
    that turns scores into the exponents of a softmax, the one of a normalisation, whose scale, one a row, the
    graph computes, and both quantisers of a table that is written as a requantisation. Tables and
    normalisations read codes as they are: a site may have no DequantizeLinear at all.
    """
    values = {value.name: value for n in model.graph for value in n.outputs}
    for site in quantized.activations:
        value = values.get(site.name)
        if value is None:
            raise InvariantError(f"site {site.name} was lost in lowering")
        scale, producer = np.float32(site.params.scale), value.producer()
        if producer is not None and producer.op_type == "Clip":
            bounds = [
                int(b)
                for b in (constant_of(producer.inputs[1]), constant_of(producer.inputs[2]))
                if b is not None
            ]
            if bounds != [site.params.qmin, site.params.qmax]:
                raise InvariantError(
                    f"site {site.name}: range {bounds}, expected {[site.params.qmin, site.params.qmax]}"
                )
            codes = producer.inputs[0]
            # A Clip among several readers is a table that bounds its index: its codes have a scale of their
            # own.
            producer = codes.producer() if codes is not None and len(codes.uses()) == 1 else None
        held = [
            (n, scale) for n in value.consumers() if n.op_type == "DequantizeLinear" and not _has_own_scale(n)
        ]
        if producer is not None and producer.op_type == "QuantizeLinear" and not is_own_quantiser(producer):
            held.append((producer, scale_undoing_factor(producer, scale)))
        for holder, wanted in held:
            got, zero_point = constant_of(holder.inputs[1]), constant_of(holder.inputs[2])
            if (
                got is None
                or zero_point is None
                or wanted != got
                or int(zero_point) != site.params.zero_point
            ):
                raise InvariantError(f"site {site.name}: scale or zero point changed in lowering")


def _has_own_scale(dequantiser: ir.Node) -> bool:
    has_row_scales = constant_of(dequantiser.inputs[1]) is None
    return has_row_scales or gives_exponents(dequantiser) or is_own_quantiser(dequantiser)


def _float_moves(model: ir.Model) -> tuple[Decision, ...]:
    """Pads that could not be folded are the one rewrite worth reporting."""
    return tuple(
        Decision(
            where=n.name or n.op_type,
            what="Pad kept as its own node",
            why="its reader is no convolution, or it adds channels or other values than zeros",
        )
        for n in model.graph
        if n.op_type == "Pad"
    )
