"""Does each node of a file exist in the file's opset: its operator, attributes, number of inputs and types.

The checker of onnx looks at operators and attributes, and at types only in a strict inference of shapes,
whose messages name no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx.defs import OpSchema, SchemaError, get_schema

from mixport.records.errors import TargetError
from mixport.records.targets import Target

_EXPORTED = 21


@dataclass(frozen=True, kw_only=True)
class NewerForm:
    """One node that the file's opset does not have.

    Attributes:
        node: its name.
        what: operator, attribute, input or type that is not there.
        since: first opset that has it; None where none is known.
    """

    node: str
    what: str
    since: int | None


def require_opset(model: onnx.ModelProto, target: Target) -> None:
    """Refuse a file that says an older opset than its nodes need.

    Raises:
        TargetError: with the first such node in graph order.
    """
    opset = _opset(model)
    if opset >= _EXPORTED:
        return
    found = list(newer_forms(model))
    if not found:
        return
    first, more = found[0], f" ({len(found) - 1} more)" if len(found) > 1 else ""
    since = "" if first.since is None else f", which came with opset {first.since}"
    raise TargetError(
        f"target {target.name}: graph.opset {opset} does not have what the model needs: "
        f"node {first.node}: {first.what}{since}{more}",
        hint=f"a target with graph.opset {max([one.since or 0 for one in found], default=0) or _EXPORTED} or "
        "more: --target onnx-int8",
    )


def newer_forms(model: onnx.ModelProto) -> Iterator[NewerForm]:
    """Nodes that are not in the file's opset, each once, in graph order; nodes of other domains are passed
    over.

    Types of tensors behind such a node may be unknown: they are not looked at.
    """
    opset, types = _opset(model), _types(model)
    for node in model.graph.node:
        if node.domain:
            continue
        what = _missing(node, types, opset)
        if what:
            newer = (one for one in range(opset + 1, onnx.defs.onnx_opset_version() + 1))
            since = next((one for one in newer if not _missing(node, types, one)), None)
            yield NewerForm(node=node.name or node.output[0], what=what, since=since)


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Type of each tensor as schemas write it, e.g. tensor(int8), as far as the newest opset knows it."""
    newest = onnx.ModelProto()
    newest.CopyFrom(model)
    for entry in newest.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = _EXPORTED
    inferred = onnx.shape_inference.infer_shapes(newest).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)
    }
    kinds |= {value.name: value.type.tensor_type.elem_type for value in inferred.output}
    kinds |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    names = onnx.TensorProto.DataType
    return {name: f"tensor({names.Name(kind).lower()})" for name, kind in kinds.items() if kind}


def _missing(node: onnx.NodeProto, types: dict[str, str], opset: int) -> str:
    """What of a node an opset does not have, empty where it has all."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return f"operator {node.op_type}"
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            return f"attribute {attribute.name} of {node.op_type}"
    if len(node.input) > schema.max_input:
        return f"input {schema.max_input + 1} of {node.op_type}"
    for names, formal, way in (
        (node.input, schema.inputs, "reads"),
        (node.output, schema.outputs, "gives"),
    ):
        for position, name in enumerate(names):
            kind = types.get(name, "")
            if kind and kind not in _allowed(formal, position):
                return f"{node.op_type} that {way} {name} of type {kind[len('tensor(') : -1]}"
    return ""


def _allowed(formal: Sequence[OpSchema.FormalParameter], position: int) -> set[str]:
    """Types of an input or output; the last one of a schema may stand for many."""
    return set(formal[min(position, len(formal) - 1)].types)


def _schema(op_type: str, opset: int) -> OpSchema | None:
    """The operator as an opset has it, None where it has none of that name."""
    try:
        return get_schema(op_type, opset, "")
    except SchemaError:
        return None
