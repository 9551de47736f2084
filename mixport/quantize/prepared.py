"""What stands before any integer is chosen: the rewritten float graph, its sites and layers, and what the
target allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.float_model import FloatModel
from mixport.quantize.graph.capture import Captured
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.quantize.sites.widths import LayerWidths
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.search import MlpRecord, Reconstruction, WidthSearch
from mixport.records.choices.width_table import WidthTable
from mixport.records.decision import Decision
from mixport.records.signature import Signature
from mixport.records.targets import Target


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A float graph ready for choices. `emit` writes into the graph: one Prepared gives one program.

    Attributes:
        model: float model that the graph was captured from.
        signature: what it takes and gives.
        captured: the graph, every rewrite done.
        target: what the program is for.
        scheme: widths asked for.
        rule: scales and zero points that the target allows.
        plan: sites with their widths, in graph order; what each node is.
        widths: of each layer's weights.
        table: widths and scales that were given for single layers and sites.
        mlps: MLPs that were altered before anything is quantised.
        mlp_iters: steps of each, 0 without any.
        decisions: what was done so far, and why.
    """

    model: FloatModel
    signature: Signature
    captured: Captured
    target: Target
    scheme: Scheme
    rule: ScaleRule
    plan: QuantizationPlan
    widths: LayerWidths
    table: WidthTable = field(default_factory=WidthTable)
    mlps: tuple[MlpRecord, ...] = ()
    mlp_iters: int = 0
    decisions: tuple[Decision, ...] = ()

    @property
    def graph(self) -> fx.GraphModule:
        """The captured graph."""
        return self.captured.graph

    def with_widths(self, widths: LayerWidths) -> Prepared:
        """The same with other weight widths."""
        return replace(self, widths=widths)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything that quantisation chooses; whatever chose it, `emit` needs nothing else.

    Attributes:
        params: scale, zero point and range of every site of the plan, by name.
        widths: of each layer's weights.
        integers: codes, scales and bias of each layer.
        decisions: what was declined or changed on the way.
        reconstruction: how codes were learned; None where none were.
        search: how weight widths were found under a size budget; None without one.
    """

    params: Mapping[str, QuantParams]
    widths: LayerWidths
    integers: Mapping[fx.Node, LayerIntegers]
    decisions: tuple[Decision, ...] = ()
    reconstruction: Reconstruction | None = None
    search: WidthSearch | None = None
