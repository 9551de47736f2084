"""The part of a float graph from the image up to one node, and how it is run on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Target

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Prefix(fx.Interpreter):
    """Computes the value of the node that a graph was cut at.

    Args:
        part: from `cut`.
        device: where to run; constants from elsewhere are copied there.
    """

    def __init__(self, part: fx.GraphModule, *, device: torch.device) -> None:
        super().__init__(part)
        self._device = device
        self._constants: dict[str, Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Of float32 [N, 3, H, W] images."""
        with torch.no_grad():
            return self.run(images.to(self._device))

    def fetch_attr(self, target: str) -> Any:
        """A constant, on the device."""
        if target not in self._constants:
            value = super().fetch_attr(target)
            self._constants[target] = value.to(self._device) if isinstance(value, Tensor) else value
        return self._constants[target]

    def call_function(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call; what makes a tensor from nothing names its device."""
        return super().call_function(
            target, args, {**kwargs, "device": self._device} if "device" in kwargs else kwargs
        )


def cut(graph: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """What the value of a node is computed by, and nothing else; its constants are shared with the graph.

    What happens to the graph later leaves the part as it is, since constants are replaced and never written
    to.
    """
    wanted, waiting = set[fx.Node](), [node]
    while waiting:
        current = waiting.pop()
        if current not in wanted:
            wanted.add(current)
            waiting.extend(current.all_input_nodes)
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for current in graph.graph.nodes:
        if current in wanted or current.op == "placeholder":
            copies[current] = part.node_copy(current, copies.__getitem__)
    part.output(copies[node])
    return fx.GraphModule(graph, part)
