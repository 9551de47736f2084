"""Max pools whose ceil_mode ONNX Runtime misreads, without it.

ATen and ONNX leave out a last window that would lie in the trailing padding alone. ONNX Runtime 1.32 counts
it when it infers shapes, and then refuses the file (`findings/onnxruntime-maxpool-ceil-mode-shapes.sh`).
"""

from __future__ import annotations

from types import MappingProxyType

from torch import fx

from mixport.model.programs.fx_graph import argument, arguments, aten, call, each_axis, shape_of
from mixport.records.decision import Decision

_MAX_POOLS = MappingProxyType(
    {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
)


def settle_ceil_modes(graph: fx.GraphModule) -> list[Decision]:
    """Drop a ceil_mode that makes no window; where it makes one on another axis than the one it is misread
    on, copy that border instead.

    A window that reaches over the end holds the last element (without dilation), so that copies of it change
    no maximum.
    """
    for node in list(graph.graph.nodes):
        if node.target not in _MAX_POOLS or not argument(node, 5, "ceil_mode", False):
            continue
        x, kernel, stride, padding, dilation = arguments(node, [], [0], [1], False, after=2)[:5]
        rank = _MAX_POOLS[node.target]
        inputs, outputs = shape_of(x)[-rank:], shape_of(node)[-rank:]
        kernels, strides, pads, steps = (
            each_axis(values, rank) for values in (kernel, stride or kernel, padding, dilation)
        )
        beyond: list[int] = []
        misread = False
        for i in range(rank):
            room = inputs[i] + 2 * pads[i] - steps[i] * (kernels[i] - 1) - 1
            beyond.append((outputs[i] - 1) * strides[i] - room if room // strides[i] + 1 < outputs[i] else 0)
            misread = misread or -(-room // strides[i]) + 1 > outputs[i]
        if any(beyond) and (not misread or rank != 2 or max(steps) > 1):
            continue
        if any(beyond):
            x = call(
                graph, aten.replication_pad2d.default, x, [0, beyond[1], 0, beyond[0]], before=node, like=node
            )
        node.args, node.kwargs = (x, kernel, stride, padding, dilation, False), {}
    return []
