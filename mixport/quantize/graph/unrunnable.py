"""Forms of float operators that torch runs and exports, and ONNX Runtime has no kernel for: refused before
any work.
"""

from __future__ import annotations

from torch import fx

from mixport.model.programs.fx_graph import aten, module_path, shape_of, tensor_arg
from mixport.records.errors import UnsupportedModelError

_CUBIC = frozenset({aten.upsample_bicubic2d.vec, aten.upsample_bicubic2d.default})


def refuse_unrunnable(graph: fx.GraphModule) -> None:
    """Look for them in a graph with recorded shapes.

    Raises:
        UnsupportedModelError: a cubic resize that shrinks an axis and does not filter (onnxruntime 1.32:
            "'Cubic' mode only supports ...").
    """
    for node in graph.graph.nodes:
        if node.target not in _CUBIC:
            continue
        before, after = shape_of(tensor_arg(node, 0))[2:], shape_of(node)[2:]
        if any(new < old for old, new in zip(before, after, strict=True)):
            sizes = " to ".join("x".join(map(str, size)) for size in (before, after))
            raise UnsupportedModelError(
                (
                    f"{module_path(node) or node.name}: bicubic resize from {sizes}, allowed without "
                    "antialias where no axis shrinks"
                ),
                hint="F.interpolate(..., mode='bicubic', antialias=True), or mode='bilinear'",
            )
