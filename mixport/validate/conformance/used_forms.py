"""Which forms of the kit a file is made of, and which of them are not measured as exact everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx

from mixport.arithmetic.neighbour_pairs import pair_violations
from mixport.validate.conformance.catalogue import FORMS
from mixport.validate.conformance.forms.functions import function_form
from mixport.validate.conformance.tensor_types import TensorTypes, tensor_types
from mixport.validate.interpreter.execution_plan import Step
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.interpreter import Interpreter

_NAMES = frozenset(form.name for form in FORMS)

_INT16_MAX = 2**15 - 1

_CODES = frozenset({"uint8", "int8", "uint16", "int16"})
_FLOATS: Mapping[str, str] = MappingProxyType({"float32": "float", "float64": "double"})

_MOVES: Mapping[str, str] = MappingProxyType(
    {
        "Reshape": "move.reshape",
        "Flatten": "move.reshape",
        "Squeeze": "move.reshape",
        "Unsqueeze": "move.reshape",
        "Identity": "move.reshape",
        "Transpose": "move.transpose",
        "Slice": "move.slice",
        "Pad": "move.pad",
        "Gather": "move.gather",
        "Expand": "move.expand",
        "Tile": "move.expand",
        "DepthToSpace": "move.depth-to-space",
        "SpaceToDepth": "move.depth-to-space",
        "Split": "move.split",
        "Concat": "concat",
        "MaxPool": "max-pool",
    }
)

_TABLES: Mapping[str, str] = MappingProxyType(
    {"Gather": "table.gather", "GatherElements": "table.gather-elements"}
)

_FLOAT_OPERATORS: Mapping[str, str] = MappingProxyType(
    {
        **{
            op: op.lower()
            for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sqrt", "Neg", "Abs", "Relu", "Clip")
        },
        **{
            op: op.lower()
            for op in ("Softmax", "Exp", "Tanh", "Erf", "Sigmoid", "Gelu", "Reciprocal", "MatMul")
        },
        "Gemm": "matmul",
        "LayerNormalization": "layer-normalization",
        "ReduceMax": "reduce-max",
        "ReduceMean": "reduce-mean",
    }
)


@dataclass(frozen=True, kw_only=True)
class UsedForm:
    """What one operator of a file is to the kit.

    Attributes:
        node: name of the node.
        op: ONNX operator.
        output: tensor that it gives.
        form: of the kit; None where the kit has no such form.
    """

    node: str
    op: str
    output: str
    form: str | None


def used_forms(
    model: Path | str | onnx.ModelProto, *, input_shape: tuple[int, ...] | None = None
) -> tuple[UsedForm, ...]:
    """The form of every operator that gives codes or floats, in graph order; shape arithmetic and constants
    are left out.

    Args:
        model: the file.
        input_shape: of its input, where symbolic axes hide how long a sum is.

    Raises:
        BadInputError: unreadable file.
    """
    interpreter = Interpreter(model)
    return tuple(_Reader(interpreter, tensor_types(interpreter.plan.graph, input_shape=input_shape)).forms())


class _Reader:
    def __init__(self, interpreter: Interpreter, types: TensorTypes) -> None:
        self.plan, self.types = interpreter.plan, types
        self.units = {unit.node.index: unit for unit in interpreter.units}
        self.absorbed = {node.index for step in self.plan.steps for node in step.absorbed}
        self.integers = {step.node.index for step in self.plan.steps if step.how in ("fused", "quantise")}

    def forms(self) -> Iterator[UsedForm]:
        for step in self.plan.steps:
            node = step.node
            if (
                step.how in ("constant", "shape", "source")
                or node.index in self.absorbed
                or self._is_inside(step)
            ):
                continue
            types = {self.types.dtype(name) for name in node.outputs if name}
            if not types & (_CODES | _FLOATS.keys()) and node.op != "Cast":
                continue
            form = self._form(step)
            if form is not None or node.op != "Cast":
                yield UsedForm(
                    node=node.name, op=node.op, output=node.outputs[0], form=form if form in _NAMES else None
                )

    def _is_inside(self, step: Step) -> bool:
        """A DequantizeLinear that only integer operators and requantisations read is part of them."""
        readers = self.plan.graph.consumers.get(step.node.outputs[0], ())
        return (
            step.node.op == "DequantizeLinear"
            and bool(readers)
            and all(reader.index in self.integers for reader in readers)
        )

    def _form(self, step: Step) -> str | None:
        node = step.node
        if step.pairs:
            return "softmax.numerators"
        if step.function is not None:
            return function_form(step.function)
        if step.how == "fused":
            return _fused_form(self.units[node.index], self._stored_bits(node))
        if node.op == "Add" and "not an integer multiple" in step.reason:
            return "add.fractional-ratio"
        if node.op == "QuantizeLinear":
            return self._quantise_form(node)
        source, result = self.types.dtype(node.input(0)), self.types.dtype(node.outputs[0])
        if node.op == "DequantizeLinear":
            return f"dequantize.{source}" if step.how == "dequantise" else f"dequantize.rows.{source}"
        if node.op == "Cast":
            return (
                f"cast.{_type_word(source)}-to-{_type_word(result)}"
                if source in _CODES or source == "float64"
                else None
            )
        if node.op == "Clip" and source in _CODES:
            return "clip.codes"
        if node.op in _TABLES and node.input(0) in self.plan.constants and result in _CODES:
            return _TABLES[node.op]
        if node.op == "Pad" and node.attributes.get("mode", "constant") != "constant":
            return "move.pad.borders"
        if node.op in _MOVES:
            return _MOVES[node.op]
        if node.op == "ReduceMax" and source in _CODES:
            return "reduce-max.codes"
        if node.op == "ReduceSum":
            return (
                f"{_FLOATS.get(result, result)}.reduce-sum{'.integers' if self.types.exact_sum(node) else ''}"
            )
        operator = _FLOAT_OPERATORS.get(node.op)
        return None if operator is None else f"{_FLOATS.get(result, result)}.{operator}"

    def _quantise_form(self, node: Node) -> str:
        to = self.types.dtype(node.outputs[0])
        source = self.plan.graph.producer.get(node.input(0))
        if source is None or source.op != "DequantizeLinear":
            return f"quantize.{to}"
        before = self.types.dtype(source.input(0))
        return f"requantise.{to}" if before == to else f"requantise.{before}-to-{to}"

    def _stored_bits(self, node: Node) -> int:
        tensor = node.input(1)
        while tensor in self.plan.graph.producer:
            tensor = self.plan.graph.producer[tensor].input(0)
        stored = self.plan.graph.stored.get(tensor, "")
        return int(stored[3:]) if stored in ("INT2", "INT4") else 8


def _fused_form(unit: FusedUnit, bits: int) -> str | None:
    if unit.kind == "add":
        return "add.integer-ratio"
    if unit.kind == "multiply":
        return "mul"
    if unit.kind == "average":
        return "global-average-pool"
    if unit.kind == "matmul":
        # A constant operand has int8 codes in mixport's files, which is another kernel than two uint8
        # tensors.
        both = len(unit.inputs) == 2
        return ("matmul.float-output" if unit.saturation is None else "matmul.dynamic") if both else None
    if unit.weight is None:
        return None
    width = f"w{bits}" if bits == 8 else f"w{bits}.int{bits}"
    if unit.kind == "gemm":
        base = "gemm.float-output" if unit.saturation is None else f"gemm.{width}"
    else:
        groups = int(unit.node.attributes.get("group", 1))
        base = (
            f"conv.{width}"
            if groups == 1
            else "conv.depthwise"
            if unit.weight.shape[:2] == (groups, 1)
            else "conv.grouped"
        )
    return base if _is_pair_safe(unit) else f"{base}.pair-saturation"


def _is_pair_safe(unit: FusedUnit) -> bool:
    """No two products that kernels add in 16 bits leave int16; see mixport.arithmetic.neighbour_pairs."""
    assert unit.weight is not None
    code = max(unit.inputs[0].high, unit.inputs[0].zero_point)
    return not pair_violations(unit.weight, largest_code=code, limit=_INT16_MAX).any()


def _type_word(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype, dtype)
