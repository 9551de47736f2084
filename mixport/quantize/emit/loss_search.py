"""Where the error of a bad output arises: each weight and each activation quantised alone, everything else in
float.

The noise of single tensors adds up, as long as it is small and independent; the tensor that alone costs the
output most is the one to look at. Only an output that is bad on calibration images is searched, so that a
good model pays two runs on a few images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import constant, operator_of
from mixport.quantize.integers.nearest import float_weights
from mixport.quantize.sites.planner import QuantizationPlan, SitePlan
from mixport.quantize.sites.widths import LayerWidths
from mixport.records.choices.search import LossSearch, TensorKind, TensorLoss
from mixport.records.output_quality import agreement, is_weak, sqnr_db

_Key = tuple[TensorKind, str]
Batches = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True, kw_only=True)
class FloatParts:
    """What the graph computes without codes, kept before quantisers are inserted.

    Attributes:
        sites: by name.
        weights: weight and bias of each layer, by its name.
    """

    sites: Mapping[str, SitePlan]
    weights: Mapping[str, tuple[Tensor, Tensor | None]]

    @classmethod
    def of(cls, graph: fx.GraphModule, plan: QuantizationPlan, widths: LayerWidths) -> FloatParts:
        """Of a float graph and its plan."""
        weights: dict[str, tuple[Tensor, Tensor | None]] = {}
        for node, width in widths.items():
            weight, bias = float_weights(graph, node)
            weights[width.name] = (torch.as_tensor(weight), None if bias is None else torch.as_tensor(bias))
        return cls(sites={site.name: site for site in plan.sites}, weights=weights)


def search_loss(
    graph: fx.GraphModule, parts: FloatParts, params: Mapping[str, QuantParams], batches: Batches
) -> LossSearch | None:
    """Quantise one tensor after the other, where the output with all of them quantised is weak; None where it
    is not.

    Args:
        graph: with every quantiser and every integer weight inserted, dead nodes still in it.
        parts: of the float graph.
        params: of every site.
        batches: gives a few images, float32 [N, 3, H, W], once more with each call.

    Returns:
        one entry a tensor, those that cost most first.
    """
    partly = _Partly(graph, parts, params)
    reference, together = partly.outputs(batches, ()), partly.outputs(batches, None)
    if not (np.isfinite(reference).all() and np.isfinite(together).all()):
        return None
    sqnr = sqnr_db(reference, together)
    same = agreement(reference, together) if sqnr is not None and reference.shape[1] > 1 else None
    if sqnr is None or not is_weak(sqnr=sqnr, same_class=same):
        return None
    found: list[TensorLoss] = []
    for kind, name in partly.tensors():
        alone = sqnr_db(reference, partly.outputs(batches, {(kind, name)}))
        assert alone is not None  # of the same reference
        found.append(TensorLoss(kind=kind, name=name, sqnr_db=alone))
    return LossSearch(
        images=len(reference),
        sqnr_db=sqnr,
        agreement=same,
        tensors=tuple(sorted(found, key=lambda one: one.sqnr_db)),
    )


class _Partly(fx.Interpreter):
    """Runs a graph of quantisers with some of them at work; the others give the float values they stand
    for.
    """

    def __init__(self, graph: fx.GraphModule, parts: FloatParts, params: Mapping[str, QuantParams]) -> None:
        super().__init__(graph)
        self.graph_module, self.parts, self.params = graph, parts, params
        self.active: Collection[_Key] | None = None

    def outputs(self, batches: Batches, active: Collection[_Key] | None) -> NDArray[np.float32]:
        """Of all images, [N, classes], with these tensors quantised; None quantises all."""
        self.active = active
        with torch.no_grad():
            return np.concatenate([_only(self.run(batch)).numpy() for batch in batches()])

    def tensors(self) -> Iterator[_Key]:
        """Every tensor with codes, in graph order."""
        for node in self.graph_module.graph.nodes:
            if node.target is OPS.quantize_dequantize.default:
                yield "activation", str(node.args[1])
            elif node.target is OPS.lookup.default:
                yield "activation", str(node.args[2])
            elif node.target is OPS.dequantize_weight.default and str(node.args[2]).endswith(".weight"):
                yield "weight", str(node.args[2]).removesuffix(".weight")

    def run_node(self, n: fx.Node) -> Any:
        """Value of one node."""
        if n.target is OPS.quantize_dequantize.default:
            return super().run_node(n) if self._at_work("activation", n.args[1]) else self._unrounded(n)
        if n.target is OPS.lookup.default:
            return self._function(n)
        if n.target is OPS.dequantize_weight.default:
            name, _, part = str(n.args[2]).rpartition(".")
            if not self._at_work("weight", name):
                return self.parts.weights[name][0 if part == "weight" else 1]
        return super().run_node(n)

    def _at_work(self, kind: TensorKind, name: Any) -> bool:
        return self.active is None or (kind, str(name)) in self.active

    def _unrounded(self, n: fx.Node) -> Tensor:
        """What a quantiser reads, behind the clamp that it absorbed."""
        value: Tensor = self.fetch_args_kwargs_from_env(n)[0][0]
        site = self.parts.sites.get(
            str(n.args[1])
        )  # further quantisers of one site have numbers, and no clamp of their own
        if site is None or site.base is not None or site.bounds is None:
            return value
        return self._call(site.tensor, value)

    def _function(self, n: fx.Node) -> Tensor:
        """What a table stands for, of values that need not be codes."""
        value: Tensor = self.fetch_args_kwargs_from_env(n)[0][0]
        name = str(n.args[2])
        for node in self.parts.sites[name].chain:
            value = self._call(node, value)
        if not self._at_work("activation", name):
            return value
        p = self.params[name]
        return OPS.quantize_dequantize(value, name, p.scale, p.zero_point, p.qmin, p.qmax, p.storage)

    def _call(self, node: fx.Node, value: Tensor) -> Tensor:
        others = [
            constant(self.graph_module, given) if isinstance(given, fx.Node) else given
            for given in node.args[1:]
        ]
        return operator_of(node)(value, *others, **node.kwargs)


def _only(output: Any) -> Tensor:
    return cast("tuple[Tensor, ...]", output)[0] if isinstance(output, (tuple, list)) else output
