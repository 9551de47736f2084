"""Fusion audit: what ONNX Runtime's optimiser made of a file, read from the optimised graph that it
writes.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from mixport.records.decision import Decision
from mixport.records.targets import SessionRules
from mixport.records.validation_report import FusionAudit
from mixport.validate.interpreter.graph import load_model
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.session import open_session, with_code_outputs

#: Integer operators whose name does not begin with QLinear.
_INTEGER = frozenset(
    {
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "NhwcMaxPool",
        "DynamicQuantizeMatMul",
        "QAttention",
    }
)

#: Operators that give floats although they run on integers.
_TO_FLOAT = frozenset({"DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})

#: Float operators that an integer one could have replaced.
_QUANTISABLE = frozenset(
    {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose", "TransposeMatMul"}
)

#: Integer operators that come from fusion: the deployed and the instrumented graph must have the same ones.
_COMPUTE_PREFIXES = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")

_CODE_TYPES = frozenset({TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16})
_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


@dataclass(frozen=True, kw_only=True)
class OptimisedNode:
    """One node of the optimised graph: its operator, name, tensors, and whether it runs on codes, floats or
    neither.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    data: str


def audit(model: Path | str | onnx.ModelProto, *, policy: SessionRules, sites: Sequence[str]) -> FusionAudit:
    """Load at the session policy and read the optimised graph.

    Args:
        model: the file.
        policy: session policy.
        sites: code tensors that validation adds as outputs; a graph that then fuses differently is reported
            in float_compute.

    Raises:
        BadInputError: the runtime refuses the file.
    """
    interpreter = Interpreter(model)
    deployed = optimised_nodes(load_model(model), policy=policy)
    instrumented = optimised_nodes(with_code_outputs(model, sites), policy=policy)
    integer = Counter(node.op for node in deployed if node.data == "codes")
    floats = Counter(node.op for node in deployed if node.data == "float")
    decisions = [
        _stayed_float(node, interpreter)
        for node in deployed
        if node.data == "float" and node.op in _QUANTISABLE
    ]
    difference = _difference(deployed, instrumented)
    if difference:
        decisions.append(
            Decision(
                where="instrumented graph", what="fuses differently from the deployed one", why=difference
            )
        )
    return FusionAudit(
        integer_nodes=dict(sorted(integer.items())),
        float_nodes=dict(sorted(floats.items())),
        float_compute=tuple(decisions),
        fused_islands=tuple(_fused_islands(deployed, interpreter)),
    )


def optimised_nodes(model: onnx.ModelProto, *, policy: SessionRules) -> tuple[OptimisedNode, ...]:
    """Nodes of the graph after the runtime's optimiser."""
    with tempfile.TemporaryDirectory(prefix="mixport-audit-") as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, policy=policy, optimized_path=path)
        return read_optimised(load_model(path))


def read_optimised(optimised: onnx.ModelProto) -> tuple[OptimisedNode, ...]:
    """Nodes of a graph that the runtime's optimiser wrote, in the order in which it runs them."""
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*optimised.graph.input, *optimised.graph.value_info)
    }
    types |= {initializer.name: initializer.data_type for initializer in optimised.graph.initializer}
    return tuple(_read(node, types) for node in optimised.graph.node)


def _read(node: onnx.NodeProto, types: dict[str, int]) -> OptimisedNode:
    inputs = [types.get(name, TensorProto.UNDEFINED) for name in node.input if name]
    first = inputs[0] if inputs else TensorProto.UNDEFINED
    integer = node.op_type.startswith("QLinear") or node.op_type in _INTEGER or first in _CODE_TYPES
    is_float = not integer and any(kind in _FLOAT_TYPES for kind in inputs)
    for name in node.output:
        types[name] = _output_type(node, inputs, types)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        integer, is_float = True, False
    if node.op_type in ("Shape", "Size"):
        integer, is_float = False, False
    data = "codes" if integer else "float" if is_float else "other"
    return OptimisedNode(
        op=node.op_type, name=node.name, inputs=tuple(node.input), outputs=tuple(node.output), data=data
    )


def _output_type(node: onnx.NodeProto, inputs: Sequence[int], types: Mapping[str, int]) -> int:
    if node.op_type in _TO_FLOAT:
        return TensorProto.FLOAT
    if node.op_type == "QuantizeLinear":
        return inputs[2] if len(inputs) > 2 else TensorProto.UINT8
    if node.op_type == "QGemm":
        # The last inputs, the output's scale and zero point, are absent where it gives floats.
        has_output_scale = len(node.input) > 8 and bool(node.input[8])
        return types.get(node.input[8], TensorProto.UINT8) if has_output_scale else TensorProto.FLOAT
    if node.op_type.startswith("QLinear"):
        return (
            TensorProto.UINT8
            if not inputs
            else next((kind for kind in inputs if kind in _CODE_TYPES), TensorProto.UINT8)
        )
    if node.op_type == "Cast":
        return next(attribute.i for attribute in node.attribute if attribute.name == "to")
    if node.op_type in ("Shape", "Size"):
        return TensorProto.INT64
    if node.op_type == "Where":
        return inputs[1]
    return inputs[0] if inputs else TensorProto.UNDEFINED


def _fused_islands(nodes: Sequence[OptimisedNode], interpreter: Interpreter) -> Iterator[Decision]:
    """Integer operators whose result is what the file quantises behind a float island."""
    entries = {
        name: site.name
        for site in interpreter.plan.sites
        if site.entry
        for name in (site.name, site.node.input(0))
    }
    for node in nodes:
        if node.op.startswith(_COMPUTE_PREFIXES):
            for site in {entries[name] for name in node.outputs if name in entries}:
                why = "the interpreter does not model it: compared with the float operator, within one code"
                yield Decision(where=site, what=f"{node.op} runs in the place of a float operator", why=why)


def _stayed_float(node: OptimisedNode, interpreter: Interpreter) -> Decision:
    where = node.name or (node.outputs[0] if node.outputs else node.op)
    names = {node.name, *node.outputs}
    for step in interpreter.plan.steps:
        if step.node.name in names or names & set(step.node.outputs):
            why = step.reason or "it should have fused: every condition that mixport knows is met"
            return Decision(where=step.node.name, what=f"{node.op} runs in float", why=why)
    return Decision(
        where=where,
        what=f"{node.op} runs in float",
        why="the optimiser made this node; the file has none of that name",
    )


def _difference(deployed: Sequence[OptimisedNode], instrumented: Sequence[OptimisedNode]) -> str:
    def counts(nodes: Sequence[OptimisedNode]) -> Counter[str]:
        return Counter(
            node.op for node in nodes if node.op.startswith(_COMPUTE_PREFIXES) or node.op == "QuantizeLinear"
        )

    a, b = counts(deployed), counts(instrumented)
    return ", ".join(
        f"{op}: {a[op]} deployed, {b[op]} instrumented" for op in sorted({*a, *b}) if a[op] != b[op]
    )


def integer_operator_count(audit: FusionAudit) -> int:
    """Integer compute operators, without Quantize/DequantizeLinear and data movement."""
    return int(
        np.sum(
            [count for op, count in audit.integer_nodes.items() if op.startswith(_COMPUTE_PREFIXES)],
            dtype=np.int64,
        )
    )
