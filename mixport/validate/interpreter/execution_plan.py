"""From a graph to a plan: how each node is executed, which tensors are code sites, where float islands are,
all before running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx

from mixport.arithmetic.definitions import ONNXRUNTIME, Definition
from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, FloatFunction
from mixport.validate.interpreter.classify import classify
from mixport.validate.interpreter.exponentials import unproved_pairs
from mixport.validate.interpreter.flattened_codes import unflattened
from mixport.validate.interpreter.float_tables import Cone, float_function, prove_cones
from mixport.validate.interpreter.fusion import (
    FUSED_OPERATORS,
    Fused,
    FusedKind,
    NotFused,
    Surroundings,
    fuse,
    saturation_of,
)
from mixport.validate.interpreter.graph import Array, Graph, Node
from mixport.validate.interpreter.kernels_elementwise import CAST_TYPES, ELEMENTWISE, SOURCES, shape_of
from mixport.validate.interpreter.kernels_movement import JOINS, MOVES
from mixport.validate.interpreter.values import (
    CODE_TYPES,
    Dequantised,
    Quantisation,
    Saturation,
    TensorInfo,
    Value,
    as_array,
)

How = Literal[
    "constant",
    "quantise",
    "dequantise",
    "fused",
    "pass",
    "move",
    "join",
    "elementwise",
    "source",
    "shape",
    "function",
    "island",
]
"""How a node is executed; `pass` is a node that a fused operator has absorbed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node of the plan.

    Attributes:
        node: the ONNX node.
        how: how it is executed.
        kernel: fused kernel, for `fused`; None otherwise.
        saturation: output quantiser of a `fused` or `quantise` step; None where a fused product gives floats.
        quantisation: scale and zero point of a `dequantise` step.
        reason: why it is an island, or why a quantisable node is computed in float, or a warning.
        absorbed: nodes between a fused node and its QuantizeLinear.
        expiring: tensors that nobody needs after this step.
        function: of a `function` step.
        pairs: of a `function` step: it reads the distance of codes from the largest of their row, and is
            proved for every pair.
        cone: of a `quantise` step, whose codes are a function of one code tensor.
    """

    node: Node
    how: How
    kernel: FusedKind | None = None
    saturation: Saturation | None = None
    quantisation: Quantisation | None = None
    reason: str = ""
    absorbed: tuple[Node, ...] = ()
    expiring: tuple[str, ...] = ()
    function: FloatFunction | None = None
    pairs: bool = False
    cone: Cone | None = None


@dataclass(frozen=True, kw_only=True)
class Site:
    """A code tensor with a name of its own.

    Attributes:
        name: of the tensor.
        node: QuantizeLinear, integer Clip or table (Gather, GatherElements) that gives it.
        low: smallest code.
        high: largest code.
        dtype: of the codes.
        entry: a float island lies directly before it, so its codes must be given.
    """

    name: str
    node: Node
    low: int
    high: int
    dtype: np.dtype[Any]
    entry: bool


@dataclass(frozen=True, kw_only=True)
class ExecutionPlan:
    """Everything that is known without an input."""

    graph: Graph
    steps: tuple[Step, ...]
    constants: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    sites: tuple[Site, ...]

    @property
    def islands(self) -> tuple[Step, ...]:
        """Nodes that the interpreter cannot compute, in graph order."""
        return tuple(step for step in self.steps if step.how == "island")


class _Planner:
    def __init__(self, graph: Graph, definition: Definition) -> None:
        self.graph = graph
        self.constants: dict[str, Value] = dict(graph.constants)
        self.tensors: dict[str, TensorInfo] = {
            name: _constant_info(array) for name, array in graph.constants.items()
        }
        self.sites: list[Site] = []
        self.absorbed: dict[int, Step] = {}
        self.cones: dict[int, Cone] = {}
        self.around = Surroundings(
            graph=graph, tensors=self.tensors, constants=self.constants, definition=definition
        )
        for port in graph.inputs:
            dtype = _port_dtype(port.elem_type)
            self.tensors[port.name] = TensorInfo(kind="float")
            if dtype in CODE_TYPES:
                limits = np.iinfo(dtype)
                self.tensors[port.name] = TensorInfo(
                    kind="codes", low=int(limits.min), high=int(limits.max), dtype=dtype
                )
            elif dtype.kind in "iub":
                self.tensors[port.name] = TensorInfo(kind="index", dtype=dtype)

    def plan(self) -> ExecutionPlan:
        steps = [self._step(node) for node in self.graph.nodes]
        return ExecutionPlan(
            graph=self.graph,
            steps=_with_expiry(steps, self.graph),
            constants=self.constants,
            tensors=self.tensors,
            sites=tuple(self.sites),
        )

    def _step(self, node: Node) -> Step:
        if self._fold(node):
            return Step(node=node, how="constant")
        if node.index in self.absorbed:
            step = self.absorbed[node.index]
            if step.node.op == "QuantizeLinear":
                self._note_site(node, entry=False)
            return step
        if node.op == "DequantizeLinear":
            return self._dequantise(node)
        if node.op == "QuantizeLinear":
            return self._quantise(node)
        refused = ""
        if node.op in FUSED_OPERATORS:
            fused = fuse(node, self.around)
            if isinstance(fused, Fused):
                return self._fused(node, fused)
            refused = fused.reason
            if self._rounds_differently(node, fused):
                return self._island(node, refused)
        return self._plain(node, refused)

    def _fold(self, node: Node) -> bool:
        """Compute a node whose inputs are all constant."""
        if (not node.inputs and node.op != "Constant") or any(
            name and name not in self.constants for name in node.inputs
        ):
            return False
        if node.op == "DequantizeLinear":
            return self._fold_dequantise(node)
        kernel = MOVES.get(node.op) or JOINS.get(node.op) or ELEMENTWISE.get(node.op) or SOURCES.get(node.op)
        arrays = [None if not name else _plain_array(self.constants[name]) for name in node.inputs]
        if node.op in ("Shape", "Size") and arrays[0] is not None:
            results = (shape_of(node, arrays[0].shape),)
        elif kernel is not None and node.attributes.get("to", onnx.TensorProto.FLOAT) in CAST_TYPES:
            results = kernel(node, arrays)
        else:
            return False
        for name, array in zip(node.outputs, results, strict=True):
            self.constants[name] = array
            self.tensors[name] = _constant_info(array)
        return True

    def _fold_dequantise(self, node: Node) -> bool:
        quantisation = self._quantisation(node)
        codes = self.constants[node.input(0)]
        if quantisation is None or not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
            return False
        self.constants[node.outputs[0]] = Dequantised(codes=codes, quantisation=quantisation)
        low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
        self.tensors[node.outputs[0]] = TensorInfo(
            kind="dequantised",
            low=low,
            high=high,
            dtype=codes.dtype,
            quantisation=quantisation,
            constant=True,
        )
        return True

    def _quantisation(self, node: Node) -> Quantisation | None:
        scale, zero_point = self.around.constant(node.input(1)), self.around.constant(node.input(2))
        if (
            scale is None
            or scale.dtype != np.float32
            or scale.ndim > 1
            or node.attributes.get("block_size", 0)
        ):
            return None
        if node.input(2) and zero_point is None:
            return None
        return Quantisation(
            scale=scale,
            zero_point=np.zeros((), np.int64) if zero_point is None else zero_point.astype(np.int64),
            axis=int(node.attributes.get("axis", 1)),
            explicit_zero_point=zero_point is not None,
        )

    def _dequantise(self, node: Node) -> Step:
        info, quantisation = self.tensors[node.input(0)], self._quantisation(node)
        if info.kind == "codes" and quantisation is None and self._has_computed_scale(node):
            self.tensors[node.outputs[0]] = TensorInfo(kind="float")
            return Step(node=node, how="elementwise")
        if info.kind != "codes" or quantisation is None:
            return self._island(
                node, "it reads something other than codes, or its scale is not constant", unless_unknown=info
            )
        self.tensors[node.outputs[0]] = replace(info, kind="dequantised", quantisation=quantisation)
        return Step(node=node, how="dequantise", quantisation=quantisation)

    def _has_computed_scale(self, node: Node) -> bool:
        """Floats for a scale, and codes, if anything, for a zero point: one subtraction of integers and one
        IEEE multiplication.
        """
        scale, zero_point = self.tensors[node.input(1)], self.tensors.get(node.input(2))
        known = (
            scale.kind == "float"
            and not scale.constant
            and (zero_point is None or zero_point.kind in ("codes", "index"))
        )
        return known and not node.attributes.get("block_size", 0)

    def _quantise(self, node: Node) -> Step:
        saturation = saturation_of(node, self.around)
        if isinstance(saturation, NotFused):
            return self._island(node, saturation.reason)
        entry = self.tensors[node.input(0)].kind == "unknown"
        cone = self.cones.get(node.index)
        low, high = (saturation.low, saturation.high) if cone is None else (cone.low, cone.high)
        self.tensors[node.outputs[0]] = TensorInfo(kind="codes", low=low, high=high, dtype=saturation.dtype)
        self._note_site(node, entry=entry)
        return Step(node=node, how="quantise", saturation=saturation, cone=cone)

    def _fused(self, node: Node, fused: Fused) -> Step:
        saturation = fused.saturation
        info = TensorInfo(kind="float")
        if saturation is not None:
            info = TensorInfo(kind="codes", low=saturation.low, high=saturation.high, dtype=saturation.dtype)
        self.tensors[node.outputs[0]] = info
        for inner in fused.absorbed:
            self.absorbed[inner.index] = Step(node=inner, how="move" if inner.op in MOVES else "pass")
            self.tensors[inner.outputs[0]] = info
        return Step(
            node=node,
            how="fused",
            kernel=FUSED_OPERATORS[node.op],
            saturation=saturation,
            reason=fused.warning,
            absorbed=fused.absorbed,
        )

    def _rounds_differently(self, node: Node, refused: NotFused) -> bool:
        """An Add that the runtime would fuse although its sums are not portable must not be computed as two
        float steps.
        """
        return node.op == "Add" and "not an integer multiple" in refused.reason

    def _plain(self, node: Node, refused: str) -> Step:
        function = float_function(node)
        if function is not None:
            return self._function(node, function)
        found = classify(node, self.around)
        if found.how == "island":
            return self._island(node, refused or found.reason)
        for name in node.outputs:
            self.tensors[name] = found.info
        if found.site:
            self._note_table(node)
        elif node.op == "Clip" and found.info.kind == "codes":
            self._note_clip(node)
        return Step(node=node, how=found.how, reason=refused)

    def _island(self, node: Node, reason: str, *, unless_unknown: TensorInfo | None = None) -> Step:
        for name in node.outputs:
            self.tensors[name] = TensorInfo(kind="unknown")
        if unless_unknown is not None and unless_unknown.kind == "unknown":
            return Step(node=node, how="pass")
        return Step(node=node, how="island", reason=reason)

    def _note_site(self, quantiser: Node, *, entry: bool) -> None:
        """A quantiser's codes are a site, unless an integer Clip is their only reader: then the Clip's
        are.
        """
        name = quantiser.outputs[0]
        readers = self.graph.consumers.get(name, ())
        clipped = len(readers) == 1 and readers[0].op == "Clip" and not self.graph.is_output(name)
        info = self.tensors[name]
        if info.dtype is None or info.kind != "codes":
            return
        target = readers[0] if clipped else quantiser
        site = Site(
            name=target.outputs[0], node=target, low=info.low, high=info.high, dtype=info.dtype, entry=entry
        )
        self.sites.append(site)

    def _note_clip(self, node: Node) -> None:
        info = self.tensors[node.outputs[0]]
        name = node.outputs[0]
        if any(site.name == name for site in self.sites):
            self.sites = [
                replace(site, low=info.low, high=info.high) if site.name == name else site
                for site in self.sites
            ]
        elif info.dtype is not None:  # one reader of the codes among several: a table that bounds its index
            self.sites.append(
                Site(name=name, node=node, low=info.low, high=info.high, dtype=info.dtype, entry=False)
            )

    def _note_table(self, node: Node) -> None:
        info = self.tensors[node.outputs[0]]
        assert info.dtype is not None
        entry = self.tensors[node.input(1)].kind == "unknown"
        name = unflattened(node, self.graph)
        self.sites.append(
            Site(name=name, node=node, low=info.low, high=info.high, dtype=info.dtype, entry=entry)
        )

    def _function(self, node: Node, function: FloatFunction) -> Step:
        """A float function: computed where it lies behind codes and every runtime is proved to give the same
        codes behind it.
        """
        cones, refused = prove_cones(node, self.around)
        fault = unproved_pairs(node, self.around) if refused and function is FLOAT_FUNCTIONS["Exp"] else None
        refused = refused if fault is None else fault
        if refused:
            return self._island(node, f"runtimes round {node.op} differently, and {refused}")
        self.cones.update(cones)
        self.tensors[node.outputs[0]] = TensorInfo(kind="float")
        return Step(node=node, how="function", function=function, pairs=fault is not None)


def build_plan(graph: Graph, definition: Definition = ONNXRUNTIME) -> ExecutionPlan:
    """Decide how every node is executed. Nothing is computed but what all inputs share.

    Args:
        graph: of the file.
        definition: arithmetic of the device.
    """
    return _Planner(graph, definition).plan()


def _constant_info(array: Array) -> TensorInfo:
    kind = "float" if array.dtype.kind == "f" else "index"
    integers = array.dtype.kind in "iu" and array.size > 0
    low, high = (int(array.min()), int(array.max())) if integers else (0, 0)
    return TensorInfo(kind=kind, low=low, high=high, dtype=array.dtype, constant=True)


def _plain_array(value: Value) -> Array:
    assert isinstance(value, np.ndarray | Dequantised)
    return as_array(value)


def _port_dtype(elem_type: int) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def _with_expiry(steps: list[Step], graph: Graph) -> tuple[Step, ...]:
    last: dict[str, int] = {}
    for position, step in enumerate(steps):
        for name in (*step.node.inputs, *step.node.outputs):
            last[name] = position
    kept = {port.name for port in graph.outputs} | {""}
    expiring: dict[int, list[str]] = {}
    for name, position in last.items():
        if name not in kept:
            expiring.setdefault(position, []).append(name)
    return tuple(replace(step, expiring=tuple(expiring.get(i, ()))) for i, step in enumerate(steps))
