"""Names of codes that a table reads flat: looked through its reshapes and transposes."""

from __future__ import annotations

from mixport.validate.interpreter.graph import Graph, Node


def unflattened(table: Node, graph: Graph) -> str:
    """Name of the codes that a table gives: behind the Reshape, and the Transpose of channels-last codes,
    that undo flattening.
    """
    name, index = table.outputs[0], graph.producer.get(table.input(1))
    flat = graph.producer.get(index.input(0)) if index is not None and index.op == "Cast" else index
    if table.op != "GatherElements" or flat is None or flat.op != "Reshape":
        return name
    shaped = _only_reader(name, "Reshape", graph)
    if shaped is None:
        return name
    before = graph.producer.get(flat.input(0))
    back = _only_reader(shaped.outputs[0], "Transpose", graph)
    undone = (
        before is not None and before.op == "Transpose" and back is not None and _are_inverse(before, back)
    )
    return back.outputs[0] if undone and back is not None else shaped.outputs[0]


def _only_reader(name: str, op: str, graph: Graph) -> Node | None:
    readers = graph.consumers.get(name, ())
    return readers[0] if len(readers) == 1 and readers[0].op == op and not graph.is_output(name) else None


def _are_inverse(first: Node, second: Node) -> bool:
    a, b = (node.attributes.get("perm", ()) for node in (first, second))
    return len(a) == len(b) and bool(a) and all(a[place] == axis for axis, place in enumerate(b))
