"""Equal initialisers are stored once: a module that is called several times, or whose weights have several
names, has one set of them.
"""

from __future__ import annotations

import hashlib

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import content_of, replace

_SMALL = 8
"""Bytes up to which the names of a constant matter more than its content: scales and zero points of single
tensors keep their own.
"""


class ShareInitializersPass(InPlacePass):
    """One initialiser for each type, shape and content. The first one keeps its name."""

    def call(self, model: ir.Model) -> PassResult:
        """Replace every later one."""
        kept: dict[object, ir.Value] = {}
        modified = False
        for name, value in list(model.graph.initializers.items()):
            key = _key(value)
            first = value if key is None else kept.setdefault(key, value)
            if first is value or value.is_graph_output():
                continue
            replace(value, first)
            del model.graph.initializers[name]
            modified = True
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """No two are equal."""
        keys = [
            key
            for value in model.graph.initializers.values()
            if (key := _key(value)) is not None and not value.is_graph_output()
        ]
        if len(keys) > len(set(keys)):
            raise ir.passes.PostconditionError("equal initialisers are stored twice")


def _key(value: ir.Value) -> object | None:
    """Equal for initialisers that are to be one; None for those that stay as they are."""
    content = content_of(value)
    if content is None or len(content[2]) <= _SMALL:
        return None
    return (*content[:2], hashlib.sha256(content[2]).digest())
