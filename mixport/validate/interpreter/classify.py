"""What a node outside the fused operators is to the plan: movement, IEEE arithmetic, shape arithmetic, table,
or float island.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mixport.validate.interpreter.fusion import PROPAGATES, Surroundings
from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.kernels_elementwise import CAST_TYPES, COMPARISONS, ELEMENTWISE, SOURCES
from mixport.validate.interpreter.kernels_movement import JOINS, MOVES
from mixport.validate.interpreter.kernels_reduce import REDUCTIONS
from mixport.validate.interpreter.values import CODE_TYPES, TensorInfo


@dataclass(frozen=True, kw_only=True)
class Classified:
    """How a node is executed, what is known of its outputs, and why it is an island."""

    how: Literal["move", "join", "elementwise", "source", "shape", "island"]
    info: TensorInfo
    reason: str = ""
    site: bool = False


_UNKNOWN = TensorInfo(kind="unknown")
_INDEX = TensorInfo(kind="index")
_FLOAT = TensorInfo(kind="float")
TABLES = frozenset({"Gather", "GatherElements"})
"""Operators that read a table of codes."""
_FLOATS = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


def classify(node: Node, around: Surroundings) -> Classified:
    """Classify by operator and by the kinds of the inputs."""
    infos = [around.tensors[name] for name in node.inputs if name]
    if node.op in ("Shape", "Size"):
        return Classified(how="shape", info=_INDEX)
    if node.op in SOURCES:
        kind = (
            _FLOAT
            if np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).dtype.kind == "f"
            else _INDEX
        )
        return Classified(how="source", info=kind if node.op == "ConstantOfShape" else infos[0])
    if node.op in TABLES and _is_table(infos):
        table = infos[0]
        return Classified(how="move", info=replace(table, kind="codes", constant=False), site=True)
    if node.op == "MaxPool" and len(node.outputs) > 1:
        return Classified(
            how="island", info=_UNKNOWN, reason="MaxPool that gives the places of its maxima, too"
        )
    if node.op in MOVES:
        return _move(node, infos)
    if node.op in JOINS:
        return _join(node, infos)
    if node.op in ELEMENTWISE:
        return _elementwise(node, infos, around)
    if node.op in REDUCTIONS:
        return _reduction(node, infos, around)
    return Classified(
        how="island", info=_UNKNOWN, reason=f"{node.op} is not bit-portable, or not known to the interpreter"
    )


def _is_table(infos: Sequence[TensorInfo]) -> bool:
    return infos[0].constant and infos[0].dtype in CODE_TYPES and not infos[1].constant


def _move(node: Node, infos: Sequence[TensorInfo]) -> Classified:
    info = replace(infos[0], constant=False)
    if info.kind == "dequantised":
        kept = node.op in PROPAGATES and info.quantisation is not None and info.quantisation.per_tensor
        info = info if kept else _FLOAT
    if any(i.kind == "unknown" for i in infos):
        info = _UNKNOWN
    return Classified(how="move", info=info)


def _join(node: Node, infos: Sequence[TensorInfo]) -> Classified:
    # Pad's second and fourth inputs are sizes; its third is the filling value, zero by default.
    tensors = infos if node.op == "Concat" else infos[:1]
    kinds = {info.kind for info in tensors}
    if "unknown" in kinds:
        return Classified(how="join", info=_UNKNOWN)
    if "codes" not in kinds:
        return Classified(how="join", info=_INDEX if kinds == {"index"} else _FLOAT)
    fills = node.op == "Pad" and node.attributes.get("mode", "constant") == "constant"
    fillers = infos[2:3] if fills and node.input(2) else ()  # absent inputs have no info
    lows = [i.low for i in (*tensors, *fillers)] + ([0] if fills and not fillers else [])
    highs = [i.high for i in (*tensors, *fillers)] + ([0] if fills and not fillers else [])
    dtype = next(i.dtype for i in tensors if i.kind == "codes")
    return Classified(how="join", info=TensorInfo(kind="codes", low=min(lows), high=max(highs), dtype=dtype))


def _elementwise(node: Node, infos: Sequence[TensorInfo], around: Surroundings) -> Classified:
    kinds = {info.kind for info in infos}
    if "unknown" in kinds:
        return Classified(how="elementwise", info=_UNKNOWN)
    if node.op in COMPARISONS:
        return Classified(how="elementwise", info=_INDEX)
    if node.op == "Cast":
        return _cast(node, infos[0])
    if "codes" in kinds:
        if node.op == "Clip":
            return _clip_codes(node, infos[0], around)
        return Classified(
            how="island", info=_UNKNOWN, reason=f"{node.op} on codes is not part of the lowered forms"
        )
    if any(i.kind == "float" and i.dtype is not None and i.dtype not in _FLOATS for i in infos):
        return Classified(
            how="island", info=_UNKNOWN, reason=f"{node.op} on floats other than float32 and float64"
        )
    if node.op == "Div" and _may_divide_by_zero(node, infos[1], around):
        reason = "division by a value that may be 0: runtimes quantise the NaN of 0 / 0 differently"
        return Classified(how="island", info=_UNKNOWN, reason=reason)
    data = infos[1:] if node.op == "Where" else infos
    floats = any(i.kind in ("float", "dequantised") for i in data)
    if node.op == "Mul" and all(i.integers for i in infos):
        corners = [a * b for a in (infos[0].low, infos[0].high) for b in (infos[1].low, infos[1].high)]
        return Classified(
            how="elementwise",
            info=TensorInfo(kind="float", low=min(corners), high=max(corners), integers=True),
        )
    return Classified(how="elementwise", info=_FLOAT if floats else _INDEX)


def _may_divide_by_zero(node: Node, divisor: TensorInfo, around: Surroundings) -> bool:
    """Float divisors are constants; or sums of softmax numerators, of which the largest is not 0; or square
    roots (LayerNorm).
    """
    if divisor.kind == "index" or divisor.constant:
        return False
    producer = around.graph.producer.get(node.input(1))
    return producer is None or producer.op not in ("ReduceSum", "Sqrt")


def _reduction(node: Node, infos: Sequence[TensorInfo], around: Surroundings) -> Classified:
    if infos[0].kind == "unknown":
        return Classified(how="elementwise", info=_UNKNOWN)
    if len(infos) > 1 and around.constant(node.input(1)) is None:
        return Classified(how="island", info=_UNKNOWN, reason=f"{node.op} over axes that are not constant")
    if node.op == "ReduceMax" and infos[0].kind == "codes":
        return Classified(how="elementwise", info=replace(infos[0], constant=False))
    if (
        node.op == "ReduceSum"
        and infos[0].kind != "index"
        and not infos[0].integers
        and not _are_multiples(infos[0])
    ):
        return Classified(
            how="island",
            info=_UNKNOWN,
            reason="the order of a float sum matters unless its values are known to be integers",
        )
    return Classified(how="elementwise", info=_INDEX if infos[0].kind == "index" else _FLOAT)


def _are_multiples(info: TensorInfo) -> bool:
    """8-bit codes behind a scale that is a power of two: sums are exact while there are at most 2^16 of
    them.
    """
    if info.kind != "dequantised" or info.quantisation is None or not info.quantisation.per_tensor:
        return False
    return (
        info.dtype is not None
        and info.dtype.itemsize == 1
        and bool(np.frexp(info.quantisation.one_scale)[0] == 0.5)
    )


def _cast(node: Node, info: TensorInfo) -> Classified:
    to = CAST_TYPES.get(node.attributes["to"])
    if to is None:
        return Classified(how="island", info=_UNKNOWN, reason=f"Cast to ONNX type {node.attributes['to']}")
    if np.dtype(to) in _FLOATS:
        # float32 holds codes of 16 bits exactly, float64 those of 32.
        bounded = info.kind == "codes"
        return Classified(
            how="elementwise",
            info=replace(_FLOAT, low=info.low, high=info.high, integers=True) if bounded else _FLOAT,
        )
    return Classified(
        how="elementwise", info=TensorInfo(kind="index", low=info.low, high=info.high, dtype=np.dtype(to))
    )


def _clip_codes(node: Node, info: TensorInfo, around: Surroundings) -> Classified:
    bounds = [around.constant(name) if name else None for name in (node.input(1), node.input(2))]
    low = info.low if bounds[0] is None else max(info.low, int(bounds[0].item()))
    high = info.high if bounds[1] is None else min(info.high, int(bounds[1].item()))
    return Classified(how="elementwise", info=replace(info, low=low, high=high))
