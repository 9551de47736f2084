"""Pads in the forms that run on codes: crops are slices, borders of every kind copy values, and a maximum
ignores what lies outside.

After these rewrites a pad has no negative amount, and is either aten.constant_pad_nd or aten.pad with mode
reflect, replicate or circular. No pad holds minus infinity: codes have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import fx

from mixport.model.programs.fx_graph import arguments, aten, call, module_path, shape_of
from mixport.records.decision import Decision
from mixport.records.errors import UnsupportedModelError

_BORDERS: Mapping[Any, str] = MappingProxyType(
    {
        aten.reflection_pad1d.default: "reflect",
        aten.reflection_pad2d.default: "reflect",
        aten.reflection_pad3d.default: "reflect",
        aten.replication_pad1d.default: "replicate",
        aten.replication_pad2d.default: "replicate",
        aten.replication_pad3d.default: "replicate",
    }
)
_LOWEST = torch.finfo(torch.float32).min


def crop_before_padding(graph: fx.GraphModule) -> list[Decision]:
    """Negative amounts as slices, and one operator for each kind of border."""
    for node in list(graph.graph.nodes):
        if node.target in _BORDERS:
            x, amounts, mode, value = (*node.args[:2], _BORDERS[node.target], None)
        elif node.target is aten.pad.default:
            x, amounts, mode, value = arguments(node, "constant", None, after=2)
        elif node.target is aten.constant_pad_nd.default:
            (x, amounts, value), mode = arguments(node, 0.0, after=2), "constant"
        else:
            continue
        if not all(isinstance(amount, int) for amount in amounts):
            raise UnsupportedModelError(
                f"{_where(node)}: pads by {list(amounts)}, allowed numbers that do not depend on the batch",
                hint="pad by fixed amounts in forward",
            )
        cropped = _cropped(graph, x, amounts, node)
        added = [max(amount, 0) for amount in amounts]
        if mode == "constant":
            node.target, node.args, node.kwargs = (
                aten.constant_pad_nd.default,
                (cropped, added, value or 0.0),
                {},
            )
        else:
            _check_reach(node, mode, shape_of(cropped), amounts=amounts, added=added)
            node.target, node.args, node.kwargs = aten.pad.default, (cropped, added, mode), {}
        if not any(added):
            node.replace_all_uses_with(cropped)
            graph.graph.erase_node(node)
    return []


def _cropped(graph: fx.GraphModule, x: fx.Node, amounts: Sequence[int], node: fx.Node) -> fx.Node:
    shape = shape_of(x)
    for i in range(len(amounts) // 2):
        axis = len(shape) - 1 - i
        start, end = max(-amounts[2 * i], 0), shape[axis] - max(-amounts[2 * i + 1], 0)
        if (start, end) != (0, shape[axis]):
            x = call(graph, aten.slice.Tensor, x, axis, start, end, before=node, like=node)
    return x


def _check_reach(
    node: fx.Node, mode: str, shape: tuple[int, ...], *, amounts: Sequence[int], added: Sequence[int]
) -> None:
    """torch takes a border from what lies before the crop, ours comes after it: alike while the rest is large
    enough.
    """
    reach = {"reflect": 1, "circular": 0, "replicate": -max(added)}[mode]
    for i, amount in enumerate(added):
        size = shape[len(shape) - 1 - i // 2]
        if amount > size - reach:
            raise UnsupportedModelError(
                (
                    f"{_where(node)}: pads by {list(amounts)} in mode {mode}, allowed borders within the "
                    f"{size} values that its crop leaves"
                ),
                hint="pad first and slice the result in forward",
            )


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis of a max pool behind a pad: sizes in elements."""

    size: int
    before: int
    after: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    def outputs(self, *, ceil: bool) -> int:
        """Windows of the pool on the padded tensor, as torch counts them."""
        padded = self.size + self.before + self.after
        room = padded + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        count = (-(-room // self.stride) if ceil else room // self.stride) + 1
        return count - (ceil and (count - 1) * self.stride >= padded + self.padding)

    def sees_values(self, outputs: int) -> bool:
        """Every window holds an element of the tensor itself."""
        starts = (i * self.stride - self.before - self.padding for i in range(outputs))
        return all(
            any(0 <= start + tap * self.dilation < self.size for tap in range(self.kernel))
            for start in starts
        )

    def folded(self) -> _Axis | None:
        """The pool with the pad as its own padding, where that is symmetric and not too wide for torch."""
        total = self.padding + self.before
        if self.before != self.after or 2 * total > self.dilation * (self.kernel - 1) + 1:
            return None
        return _Axis(
            size=self.size,
            before=0,
            after=0,
            kernel=self.kernel,
            stride=self.stride,
            padding=total,
            dilation=self.dilation,
        )


def fold_infinite_pads(graph: fx.GraphModule) -> list[Decision]:
    """A pad by minus infinity in front of max pools: their own padding, or a border of copies, which no
    maximum exceeds for them.

    A window that reaches over the border holds the border's own value too, so a copy of it changes no
    maximum.
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target is not aten.constant_pad_nd.default or node.args[2] > _LOWEST:
            continue
        x, amounts, _ = arguments(node)
        pools = list(node.users)
        if (
            any(pool.target is not aten.max_pool2d.default for pool in pools)
            or len(shape_of(x)) != 4
            or any(amounts[4:])
        ):
            raise UnsupportedModelError(
                (
                    f"{_where(node)}: pads by minus infinity, allowed in rows and columns, where "
                    "max_pool2d alone reads it"
                ),
                hint="pad by a finite value in forward, or use the padding of max_pool2d",
            )
        copies: fx.Node | None = None
        for pool in pools:
            axes, ceil = _axes_of(pool, shape_of(x), amounts)
            _check_windows(pool, axes, ceil=ceil)
            folded = [axis.folded() for axis in axes]
            same = all(
                new is not None and new.outputs(ceil=ceil) == old.outputs(ceil=ceil)
                for new, old in zip(folded, axes, strict=True)
            )
            if same:
                padding = [axis.padding for axis in folded if axis is not None]
                _, kernel, stride, _, dilation, ceil = arguments(pool, [], [0, 0], [1, 1], False, after=2)
                pool.args = (x, kernel, stride, padding, dilation, ceil)
            else:
                copies = copies or call(
                    graph, aten.pad.default, x, list(amounts), "replicate", before=node, like=node
                )
                pool.replace_input_with(node, copies)
        what = "copies of the border" if copies is not None else "the padding of the max pool"
        decisions.append(
            Decision(
                where=_where(node),
                what=f"pad by minus infinity became {what}",
                why="no maximum changes, and codes hold it",
            )
        )
    return decisions


def _axes_of(pool: fx.Node, shape: tuple[int, ...], amounts: Sequence[int]) -> tuple[list[_Axis], bool]:
    _, kernel, stride, padding, dilation, ceil = arguments(pool, [], [0, 0], [1, 1], False, after=2)
    left, right, top, bottom = (*amounts, 0, 0)[:4]
    axes: list[_Axis] = []
    for i, (before, after) in enumerate(((top, bottom), (left, right))):
        k, p, d = (
            cast("list[int]", sizes)[i if len(sizes) > 1 else 0] for sizes in (kernel, padding, dilation)
        )
        s = stride[i if len(stride) > 1 else 0] if stride else k
        axes.append(
            _Axis(size=shape[2 + i], before=before, after=after, kernel=k, stride=s, padding=p, dilation=d)
        )
    return axes, bool(ceil)


def _check_windows(pool: fx.Node, axes: list[_Axis], *, ceil: bool) -> None:
    for axis in axes:
        if not axis.sees_values(axis.outputs(ceil=ceil)):
            raise UnsupportedModelError(
                f"{_where(pool)}: a window of max_pool2d holds nothing but minus infinity",
                hint="pad by less than the kernel in forward",
            )
        if axis.dilation > 1 and axis.folded() is None:
            raise UnsupportedModelError(
                f"{_where(pool)}: max_pool2d with dilation behind an uneven pad by minus infinity",
                hint="use the padding of max_pool2d, or dilation 1",
            )


def _where(node: fx.Node) -> str:
    return module_path(node) or node.name
