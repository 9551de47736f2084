"""Functions of one 8-bit code as standard operators: an integer Clip, the float function itself, or a table
of 256 codes.

- Clip: where the table only bounds its index, whatever function it came from, and others read the codes as
  they are (a hard sigmoid beside its own input, in a hard swish). Alone behind a quantiser, a Clip would pass
  for the bounds of that quantiser.
- The float function between DequantizeLinear and QuantizeLinear: where quantisation has proved that every
  runtime rounds all 256 results to the table's entries (mixport.arithmetic.float_functions), and says so in
  `form`.
- A requantisation through LeakyRelu with alpha 1, where the table is straight
  (mixport.arithmetic.affine_tables).
- GatherElements from the table, on flat codes: ONNX Runtime's Gather copies one element at a time through
  memcpy, eight times slower (1.13 ms against 0.15 ms for 151,296 codes; 1.32, x64).

Flattening is no movement that ONNX Runtime's layout optimiser understands: it would put a Transpose on either
side of a table between convolutions, which run channels last. The file therefore flattens channels-last codes
there: its own two Transposes meet the optimiser's and both vanish
(tests/unit/lower/operators/test_tables.py).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mixport.arithmetic.affine_tables import FORM as REQUANTISATION
from mixport.arithmetic.affine_tables import find_requantisation
from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, TABLE
from mixport.lower.onnx_graph import SITE, UNDOES, constant_of, initializer, mark, node, replace
from mixport.records.errors import InvariantError

_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

_LAYOUT_NEUTRAL = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Clip", "Mul", "Add", "Relu", "MaxPool", "Concat", "Identity"}
)
"""Operators that ONNX Runtime runs channels last behind a convolution without a Transpose."""


def expand_table(graph: ir.Graph, old: ir.Node) -> None:
    """mixport::Lookup; its entries must be uint8 [256]."""
    name, form = old.attributes["site"].as_string(), old.attributes["form"].as_string()
    table = constant_of(old.inputs[1])
    if table is None or table.shape != (256,):
        raise InvariantError(f"table of {name} is not constant, or has not 256 entries")
    steps = _Steps(graph, old, name)
    bounds = clip_bounds(table) if _has_other_readers(old.inputs[0]) else None
    if bounds is not None:
        codes = _clip(steps, bounds)
    elif form == REQUANTISATION:
        codes = _requantisation(steps, table)
    elif form != TABLE:
        codes = _function(steps, form)
    else:
        codes = _gather(steps, table.astype(np.uint8))
    mark(codes, SITE, name)
    back = steps.add("DequantizeLinear", codes, steps.scale, steps.zero_point, output=f"{name}/dq")
    graph.insert_before(old, steps.nodes)
    replace(old.outputs[0], back)


def clip_bounds(table: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(low, high) where the table only bounds its index, None for any other table, one of equal entries among
    them.
    """
    low, high = int(table.min()), int(table.max())
    return (low, high) if low < high and np.array_equal(table, np.clip(np.arange(256), low, high)) else None


def is_own_quantiser(n: ir.Node) -> bool:
    """True for either quantiser of a requantisation: their scales and zero points are not those of the codes
    on either side.
    """
    if n.op_type == "DequantizeLinear":
        readers = n.outputs[0].consumers()
        return bool(readers) and all(_is_identity(reader) for reader in readers)
    maker = n.inputs[0].producer() if n.op_type == "QuantizeLinear" and n.inputs[0] is not None else None
    return maker is not None and _is_identity(maker)


def _is_identity(n: ir.Node) -> bool:
    return n.op_type == "LeakyRelu" and "alpha" in n.attributes and n.attributes["alpha"].as_float() == 1.0


def _has_other_readers(value: ir.Value | None) -> bool:
    return value is not None and value.producer() is not None and len(value.uses()) > 1


class _Steps:
    """Nodes in the order in which they are made, with what all forms need."""

    def __init__(self, graph: ir.Graph, old: ir.Node, name: str) -> None:
        self.graph, self.old, self.name = graph, old, name
        self.nodes: list[ir.Node] = []
        self.scale = initializer(
            graph, f"{name}/scale", np.asarray(old.attributes["scale"].as_float(), np.float32)
        )
        self.storage = old.attributes["storage"].as_string()
        self.zero_point = self.code(old.attributes["zero_point"].as_int())

    def code(self, value: int) -> ir.Value:
        """A scalar code that the whole file shares; `value` counts from 0."""
        stored = value + np.iinfo(self.storage).min
        return initializer(self.graph, f"{self.storage}/{stored}", np.asarray(stored, self.storage))

    def entries(self, table: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.int8]:
        """The table in the order of its index: negative indices count from the end."""
        if self.storage == "uint8":
            return table
        return (np.roll(table, -128).astype(np.int16) - 128).astype(np.int8)

    def add(self, op_type: str, *inputs: ir.Value | None, output: str, **attributes: object) -> ir.Value:
        """Add a node named after its operator."""
        again = sum(one.op_type == op_type for one in self.nodes)
        name = f"{self.name}/{op_type}" + (f"_{again + 1}" if again else "")
        made = node(op_type, list(inputs), output=output, name=name, **attributes)
        self.nodes.append(made)
        return made.outputs[0]

    def index(self) -> ir.Value:
        """The codes that the table reads, undone from the floats that the exporter saw."""
        attributes = self.old.attributes
        scale = initializer(
            self.graph, f"{self.name}/in_scale", np.asarray(attributes["in_scale"].as_float(), np.float32)
        )
        zero_point = self.code(attributes["in_zero_point"].as_int())
        back = self.add("QuantizeLinear", self.old.inputs[0], scale, zero_point, output=f"{self.name}/in")
        mark(back, UNDOES, self.name)
        return back


def _clip(steps: _Steps, bounds: tuple[int, int]) -> ir.Value:
    return steps.add("Clip", steps.index(), *(steps.code(bound) for bound in bounds), output=steps.name)


def _function(steps: _Steps, form: str) -> ir.Value:
    function = FLOAT_FUNCTIONS[form]
    value = steps.add(
        function.op_type, steps.old.inputs[0], output=f"{steps.name}/float", **function.attributes
    )
    return steps.add("QuantizeLinear", value, steps.scale, steps.zero_point, output=steps.name)


def _requantisation(steps: _Steps, table: NDArray[np.uint8]) -> ir.Value:
    found, function = find_requantisation(table), FLOAT_FUNCTIONS[REQUANTISATION]
    if found is None:
        raise InvariantError(f"the table of {steps.name} is no requantisation")
    scales = [
        initializer(steps.graph, f"{steps.name}/{one}", np.asarray(params.scale, np.float32))
        for one, params in (("slope", found.source), ("unit", found.target))
    ]
    floats = steps.add(
        "DequantizeLinear",
        steps.index(),
        scales[0],
        steps.code(found.source.zero_point),
        output=f"{steps.name}/steps",
    )
    value = steps.add(function.op_type, floats, output=f"{steps.name}/float", **function.attributes)
    return steps.add(
        "QuantizeLinear", value, scales[1], steps.code(found.target.zero_point), output=steps.name
    )


def _gather(steps: _Steps, table: NDArray[np.uint8]) -> ir.Value:
    name, source = steps.name, steps.index()
    shape = _static_shape(steps.old)
    channels_last = len(shape) == 4 and _behind_convolution(steps.old.inputs[0])
    if channels_last:
        source = steps.add("Transpose", source, output=f"{name}/last", perm=_CHANNELS_LAST)
        shape = [shape[axis] for axis in _CHANNELS_LAST]
    flat = steps.add("Reshape", source, _sizes(steps.graph, [-1]), output=f"{name}/flat")
    index = steps.add("Cast", flat, output=f"{name}/index", to=int(ir.DataType.INT32))
    entries = initializer(steps.graph, f"{name}/table", steps.entries(table))
    found = steps.add("GatherElements", entries, index, output=f"{name}/entries", axis=0)
    codes = steps.add(
        "Reshape", found, _sizes(steps.graph, shape), output=f"{name}/first" if channels_last else name
    )
    return steps.add("Transpose", codes, output=name, perm=_CHANNELS_FIRST) if channels_last else codes


def _static_shape(old: ir.Node) -> list[int]:
    """Sizes as Reshape takes them: -1 for the one axis that the exporter left open, the batch."""
    shape = old.outputs[0].shape or (old.inputs[0].shape if old.inputs[0] is not None else None)
    if shape is None:
        raise InvariantError(f"the exporter gives no shape for {old.name}")
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
        raise InvariantError(f"{old.name} has several symbolic axes: {shape}")
    return sizes


def _sizes(graph: ir.Graph, sizes: list[int]) -> ir.Value:
    return initializer(graph, "shape/" + ",".join(map(str, sizes)), np.asarray(sizes, np.int64))


def _behind_convolution(value: ir.Value | None) -> bool:
    """True where nothing but operators that take any layout stand between a 2-D convolution and this
    tensor.
    """
    while value is not None:
        producer = value.producer()
        if producer is None:
            return False
        if producer.op_type == "Conv":
            return True
        if producer.op_type not in _LAYOUT_NEUTRAL:
            return _is_table_end(producer)
        value = producer.inputs[0]
    return False


def _is_table_end(producer: ir.Node) -> bool:
    """The Transpose that ends another channels-last table."""
    perm = (
        producer.attributes["perm"].as_ints()
        if producer.op_type == "Transpose" and "perm" in producer.attributes
        else ()
    )
    return (
        tuple(perm) == _CHANNELS_FIRST
        and producer.inputs[0] is not None
        and _is_reshaped_table(producer.inputs[0].producer())
    )


def _is_reshaped_table(producer: ir.Node | None) -> bool:
    source = producer.inputs[0] if producer is not None and producer.op_type == "Reshape" else None
    maker = source.producer() if source is not None else None
    return maker is not None and maker.op_type == "GatherElements"
