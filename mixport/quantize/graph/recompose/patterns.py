"""Match a node and what it reads against a pattern of operators."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

_ABOUT_MEMORY = frozenset({"dtype", "layout", "device", "pin_memory", "memory_format"})
"""Keyword arguments that say where and how values lie."""

Pattern = object
"""A tuple (operator, pattern of each argument), a name that stands for any node, or a number."""


def bind(
    value: object, pattern: Pattern, bound: dict[str, fx.Node] | None = None
) -> dict[str, fx.Node] | None:
    """The node behind each name of `pattern`; None where `value` does not match, or one name would stand for
    two nodes.
    """
    bound = {} if bound is None else bound
    if isinstance(pattern, str):
        if not isinstance(value, fx.Node) or bound.setdefault(pattern, value) is not value:
            return None
        return bound
    if not isinstance(pattern, tuple):
        return bound if value == pattern and not isinstance(value, fx.Node) else None
    target, *parts = cast("tuple[Any, ...]", pattern)
    if not isinstance(value, fx.Node) or value.target is not target or len(value.args) != len(parts):
        return None
    if value.kwargs.keys() - _ABOUT_MEMORY:  # alpha, rounding_mode: another function
        return None
    for argument, part in zip(value.args, parts, strict=True):
        if bind(argument, part, bound) is None:
            return None
    return bound
