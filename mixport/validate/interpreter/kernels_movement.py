"""Data movement: operators that copy values and compute nothing, so they act on codes and on floats alike
(opset 13 to 25).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from mixport.records.errors import UnsupportedModelError
from mixport.validate.interpreter.graph import Array, Node

Kernel = Callable[[Node, Sequence[Array | None]], tuple[Array, ...]]


def _data(args: Sequence[Array | None]) -> Array:
    assert args[0] is not None
    return args[0]


def _ints(node: Node, args: Sequence[Array | None], position: int) -> tuple[int, ...] | None:
    array = args[position] if position < len(args) else None
    return None if array is None else tuple(int(v) for v in array.reshape(-1))


def _reshape(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data = _data(args)
    wanted = list(_ints(node, args, 1) or ())
    if not node.attributes.get("allowzero", 0):
        wanted = [data.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return (data.reshape(wanted),)


def _transpose(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    return (np.ascontiguousarray(_data(args).transpose(node.attributes.get("perm"))),)


def _flatten(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data = _data(args)
    axis = node.attributes.get("axis", 1)
    axis += data.ndim if axis < 0 else 0
    rows, columns = (int(np.prod(part, dtype=np.int64)) for part in (data.shape[:axis], data.shape[axis:]))
    return (data.reshape(rows, columns),)


def _squeeze(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    return (np.squeeze(_data(args), axis=_ints(node, args, 1)),)


def _unsqueeze(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    return (np.expand_dims(_data(args), _ints(node, args, 1) or ()),)


def _slice(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data = _data(args)
    starts, ends = _ints(node, args, 1) or (), _ints(node, args, 2) or ()
    axes = _ints(node, args, 3) or tuple(range(len(starts)))
    steps = _ints(node, args, 4) or (1,) * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # A negative step that runs past the front is an open end for Python, and a very negative one for
        # ONNX.
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return (data[tuple(index)],)


def _split(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data = _data(args)
    axis = node.attributes.get("axis", 0)
    sizes = _ints(node, args, 1)
    if sizes is None:
        part = -(-data.shape[axis] // len(node.outputs))
        return tuple(np.split(data, [part * i for i in range(1, len(node.outputs))], axis=axis))
    return tuple(np.split(data, np.cumsum(sizes)[:-1].tolist(), axis=axis))


def _concat(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    return (np.concatenate([a for a in args if a is not None], axis=node.attributes["axis"]),)


def _gather(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    indices = args[1]
    assert indices is not None
    return (np.take(_data(args), indices.astype(np.int64), axis=node.attributes.get("axis", 0)),)


def _gather_elements(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data, indices, axis = _data(args), args[1], node.attributes.get("axis", 0)
    assert indices is not None
    wide = indices.astype(np.int64)
    return (np.take_along_axis(data, np.where(wide < 0, wide + data.shape[axis], wide), axis=axis),)


def _expand(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data = _data(args)
    return (np.broadcast_to(data, np.broadcast_shapes(data.shape, _ints(node, args, 1) or ())).copy(),)


def _tile(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    return (np.tile(_data(args), _ints(node, args, 1) or ()),)


def _pad(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data = _data(args)
    pads, mode = _ints(node, args, 1) or (), node.attributes.get("mode", "constant")
    if any(p < 0 for p in pads):
        raise UnsupportedModelError(
            f"node {node.name} (Pad): a negative pad is not interpreted", hint="write it as a Slice"
        )
    axes = _ints(node, args, 3) or tuple(range(data.ndim))
    widths = [(0, 0)] * data.ndim
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(axes)])
    if mode != "constant":
        return (np.pad(data, widths, mode=mode),)
    value = args[2] if len(args) > 2 and args[2] is not None else np.zeros((), data.dtype)
    return (np.pad(data, widths, constant_values=value.reshape(()).item()),)


def _depth_to_space(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data, b = _data(args), node.attributes["blocksize"]
    n, c, h, w = data.shape
    if node.attributes.get("mode", "DCR") == "DCR":
        moved = data.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = data.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return (moved.reshape(n, c // (b * b), h * b, w * b),)


def _space_to_depth(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data, b = _data(args), node.attributes["blocksize"]
    n, c, h, w = data.shape
    return (
        data.reshape(n, c, h // b, b, w // b, b)
        .transpose(0, 3, 5, 1, 2, 4)
        .reshape(n, c * b * b, h // b, w // b),
    )


def _identity(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    return (_data(args),)


def _max_pool(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    data, attributes = _data(args), node.attributes
    kernel: tuple[int, ...] = attributes["kernel_shape"]
    axes = range(len(kernel))
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise UnsupportedModelError(
            f"node {node.name} (MaxPool): only explicit pads are interpreted", hint="write the pads out"
        )
    strides = attributes.get("strides", (1,) * len(kernel))
    dilations = attributes.get("dilations", (1,) * len(kernel))
    pads = attributes.get("pads", (0, 0) * len(kernel))
    span = [dilations[i] * (kernel[i] - 1) + 1 for i in axes]
    sizes, extra = [0] * len(kernel), [0] * len(kernel)
    for i in axes:
        size = data.shape[2 + i] + pads[i] + pads[len(kernel) + i]
        room = size - span[i]
        sizes[i] = (-(-room // strides[i]) if attributes.get("ceil_mode", 0) else room // strides[i]) + 1
        if attributes.get("ceil_mode", 0) and (sizes[i] - 1) * strides[i] >= data.shape[2 + i] + pads[i]:
            # A window that would start in the trailing padding is left out (ONNX MaxPool 19).
            sizes[i] -= 1
        extra[i] = max(0, (sizes[i] - 1) * strides[i] + span[i] - size)
    lowest = -np.inf if data.dtype.kind == "f" else np.iinfo(data.dtype).min
    widths = ((0, 0), (0, 0), *((pads[i], pads[len(kernel) + i] + extra[i]) for i in axes))
    padded = np.pad(data, widths, constant_values=lowest)
    result: Array | None = None
    for tap in np.ndindex(*kernel):
        starts = [tap[i] * dilations[i] for i in axes]
        window = padded[
            (..., *(slice(starts[i], starts[i] + strides[i] * (sizes[i] - 1) + 1, strides[i]) for i in axes))
        ]
        result = window.copy() if result is None else np.maximum(result, window, out=result)
    assert result is not None
    return (result,)


#: Operators that move one tensor: the first input; the rest are sizes and indices.
MOVES: Mapping[str, Kernel] = MappingProxyType(
    {
        "Reshape": _reshape,
        "Transpose": _transpose,
        "Flatten": _flatten,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Slice": _slice,
        "Split": _split,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "Expand": _expand,
        "Tile": _tile,
        "DepthToSpace": _depth_to_space,
        "SpaceToDepth": _space_to_depth,
        "Identity": _identity,
        "MaxPool": _max_pool,
    }
)

#: Operators that join several tensors, or a tensor and a filling value.
JOINS: Mapping[str, Kernel] = MappingProxyType({"Concat": _concat, "Pad": _pad})
