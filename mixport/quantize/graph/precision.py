"""Layers that a model computes in half precision: refused by name, since a quantised layer stands for a
float32 one.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import aten, module_path
from mixport.records.errors import UnsupportedModelError

_LAYERS = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.convolution.default,
        aten.linear.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.mm.default,
        aten.addmm.default,
        aten.scaled_dot_product_attention.default,
    }
)
_HALVES = (torch.float16, torch.bfloat16)


def check_precision(graph: fx.GraphModule) -> None:
    """Raise UnsupportedModelError where a layer or a matrix product of an exported graph gives float16 or
    bfloat16.
    """
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.target in _LAYERS and isinstance(value, Tensor) and value.dtype in _HALVES:
            where, operator = module_path(node) or node.name, str(node.target).removesuffix(".default")
            raise UnsupportedModelError(
                f"{where}: {operator} computes in {str(value.dtype).removeprefix('torch.')}, allowed float32",
                hint=(
                    "leave torch.autocast, .half() and .bfloat16() out of forward: mixport quantises the "
                    "float32 model"
                ),
            )
