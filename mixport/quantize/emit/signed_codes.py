"""Activation codes as int8 in the place of uint8: the same steps, code and zero point smaller by 128.

Everything is chosen for uint8 codes, whose arithmetic is the same: kernels subtract zero points. A target
that stores int8 gets them at the end.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import arguments
from mixport.records.quantized_model import ActivationSite

_SHIFT = 128


def to_int8(graph: fx.GraphModule) -> None:
    """Change the storage of every 8-bit activation; 16-bit streams stay."""
    for node in graph.graph.nodes:
        if node.target is OPS.quantize_dequantize.default:
            x, name, scale, zero_point, qmin, qmax, storage = arguments(node)
            if storage == "uint8":
                node.args = (x, name, scale, zero_point - _SHIFT, qmin - _SHIFT, qmax - _SHIFT, "int8")
        elif node.target is OPS.lookup.default:
            node.args = (*node.args[:10], "int8")
        elif node.target is OPS.coded_numerators.default:
            x, name, scale, zero_point, step, _ = arguments(node)
            node.args = (x, name, scale, zero_point - _SHIFT, step, "int8")
        elif node.target is OPS.layer_norm.default and node.args[7] == "uint8":
            node.args = (*node.args[:6], int(node.args[6]) - _SHIFT, "int8")


def as_int8(site: ActivationSite) -> ActivationSite:
    """The record of a site after `to_int8`."""
    return site if site.params.storage != "uint8" else replace(site, params=signed(site.params))


def signed(params: QuantParams) -> QuantParams:
    """The same real values for int8 codes."""
    return replace(
        params,
        zero_point=params.zero_point - _SHIFT,
        qmin=params.qmin - _SHIFT,
        qmax=params.qmax - _SHIFT,
        storage="int8",
    )
