"""Which softmaxes and normalisations get a portable form, what they are given, and what is said of others."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mixport.arithmetic.attention_softmax import choose_exponent
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import aten, clean, constant, record_shapes
from mixport.quantize.algorithms.activations import choose_params
from mixport.quantize.emit import softmax_layernorm
from mixport.quantize.emit.insert import code_params, insert_activations
from mixport.quantize.emit.softmax_layernorm import composites_of, insert_softmax_layernorm
from mixport.quantize.kernel_forms.late_division import divide_after_product
from mixport.quantize.prepare import scale_rule
from mixport.quantize.scales.histograms import collect
from mixport.quantize.sites.planner import QuantizationPlan, make_plan
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import CompositeForm
from mixport.records.targets import load_target
from tests.unit.quantize.conftest import Capture

TARGET = load_target("ort-cpu")
NOTHING = QuantizationPlan(
    kinds={}, sites=(), groups=(), edges=frozenset(), decisions=(), free_tensors=frozenset()
)
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(7))
Coded = tuple[fx.GraphModule, QuantizationPlan]


class Tokens(nn.Module):
    """Sixteen tokens of eight values; `body` is what is done to them."""

    def __init__(self, body: Callable[[Tensor], Tensor] = torch.neg, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), norm or nn.Identity(), nn.Linear(8, 5)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.body(self.norm(tokens)).mean(1))


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]).flatten(1, 2)


def coded(
    captured: Capture, module: nn.Module, scheme: str = "w8a8"
) -> tuple[fx.GraphModule, QuantizationPlan]:
    """The graph with its activation quantisers, softmaxes divided behind their product where they can be."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.reset_parameters()
    graph = captured(module).graph
    divide_after_product(graph, TARGET, bits=8)
    clean(graph)
    record_shapes(graph, torch.zeros(2, 3, 16, 16))
    plan = make_plan(graph, Scheme.parse(scheme), stream_bits=16)
    names = {site.tensor: site.name for site in reversed(plan.sites)}
    observers = [found for _, found in collect(graph, names, iter([IMAGES]))][-1]
    histograms = {site.name: observers[site.tensor].result() for site in plan.sites}
    insert_activations(graph, plan, choose_params(plan, histograms, scale_rule(TARGET)), TARGET)
    clean(graph)
    return graph, plan


def only(graph: fx.GraphModule, target: object) -> fx.Node:
    (found,) = [node for node in graph.graph.nodes if node.target is target]
    return found


def softmax_of(shape: tuple[int, ...], *arguments: object) -> fx.GraphModule:
    """One softmax over scores of this shape."""
    graph = fx.Graph()
    node = graph.call_function(aten.softmax.int, (graph.placeholder("x"), *arguments))
    graph.output(node)
    for each in graph.nodes:
        each.meta["shape"] = shape
    return fx.GraphModule(nn.Module(), graph)


def test_a_normalisation_takes_the_scale_of_the_codes_it_reads(captured: Capture) -> None:
    norm = nn.LayerNorm(8, eps=1e-3)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    graph, plan = coded(captured, Tokens(norm=norm))
    before = graph(IMAGES)
    assert insert_softmax_layernorm(graph, plan, portable=True) == []
    clean(graph)
    made = only(graph, OPS.layer_norm.default)
    x, gamma, beta = made.args[:3]
    params = code_params(x)
    assert params is not None
    assert made.args[3:] == ("norm", 1e-3, params.scale, params.zero_point, params.storage)
    assert torch.equal(constant(graph, gamma), norm.weight) and torch.equal(constant(graph, beta), norm.bias)
    assert not [node for node in graph.graph.nodes if node.target is aten.layer_norm.default]
    # Integer sums in the place of float ones: other codes only where a value lies between two.
    torch.testing.assert_close(graph(IMAGES), before, rtol=0, atol=0.02)
    assert composites_of(graph, batch=2) == (CompositeForm(kind="layer_norm", shape=(1, 16, 8)),)


def test_a_normalisation_without_weights_gets_ones_and_zeros(captured: Capture) -> None:
    graph, plan = coded(captured, Tokens(norm=nn.LayerNorm(8, elementwise_affine=False)))
    insert_softmax_layernorm(graph, plan, portable=True)
    gamma, beta = (constant(graph, one) for one in only(graph, OPS.layer_norm.default).args[1:3])
    assert gamma is not None and beta is not None
    assert (gamma.tolist(), beta.tolist()) == ([1.0] * 8, [0.0] * 8)


def test_a_target_that_is_not_portable_keeps_both_and_says_why(captured: Capture) -> None:
    graph, plan = coded(captured, Tokens(lambda x: x.softmax(-1), nn.LayerNorm(8)))
    before = graph.code
    why = "the build asks for the runtime's own kernel, which differs between machines"
    assert insert_softmax_layernorm(graph, plan, portable=False) == [
        Decision(where="norm", what="layer_norm left in float", why=why),
        Decision(where="softmax", what="softmax left in float", why=why),
    ]
    clean(graph)
    assert graph.code == before
    assert composites_of(graph, batch=2) == ()


def test_a_normalisation_of_floats_stays(captured: Capture) -> None:
    graph = captured(Tokens(norm=nn.LayerNorm(8))).graph
    plan = make_plan(graph, Scheme.parse("w8a8"), stream_bits=16)
    assert insert_softmax_layernorm(graph, plan, portable=True) == [
        Decision(where="norm", what="layer_norm left in float", why="the normalisation reads no codes")
    ]


@pytest.mark.parametrize(("scheme", "bits"), [("w8a8", 8), ("w4a4", 4)])
def test_numerators_take_the_bits_of_their_quantiser(
    captured: Capture, monkeypatch: pytest.MonkeyPatch, scheme: str, bits: int
) -> None:
    # Widths often have one step: what was asked for does not show in the result.
    spy = Mock(wraps=softmax_layernorm.fix_exponent)
    monkeypatch.setattr(softmax_layernorm, "fix_exponent", spy)
    graph, plan = coded(captured, Tokens(attention), scheme)
    scores = only(graph, OPS.softmax_numerators.default)
    factor = scores.args[1]
    assert insert_softmax_layernorm(graph, plan, portable=True) == []
    clean(graph)
    assert [call.kwargs for call in spy.call_args_list] == [{"bits": bits}]
    made = only(graph, OPS.coded_numerators.default)
    assert isinstance(factor, float) and isinstance(made.args[2], float)
    wanted = choose_exponent(made.args[2] * factor, bits=bits)
    assert wanted is not None and made.args[4] == wanted.step
    assert composites_of(graph, batch=2) == (CompositeForm(kind="attention", shape=(1, 1, 16, 16)),)


def test_numerators_that_floats_are_made_of_are_our_bug(captured: Capture) -> None:
    graph, plan = coded(captured, Tokens(attention))
    numerators = only(graph, OPS.softmax_numerators.default)
    with graph.graph.inserting_after(numerators):
        graph.graph.call_function(aten.relu.default, (numerators,))
    with pytest.raises(InvariantError, match="numerators softmax_numerators_default have no codes"):
        insert_softmax_layernorm(graph, plan, portable=True)


@pytest.mark.parametrize(
    ("shape", "arguments", "bits"),
    [
        ((2, 9), (-1,), 16),
        ((2, 3, 257), (2,), 15),
        ((2, 65_536), (-1,), 8),
        ((2, 9), (-1, torch.float32), 16),
    ],
)
def test_a_softmax_over_the_last_axis_gets_as_many_bits_as_its_sum_allows(
    shape: tuple[int, ...], arguments: tuple[object, ...], bits: int
) -> None:
    graph = softmax_of(shape, *arguments)
    assert insert_softmax_layernorm(graph, NOTHING, portable=True) == []
    made = only(graph, OPS.softmax.default)
    assert made.args[1] == bits
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_function", "output"]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [((2, 3, 9), (1,)), ((2, 3, 9), (-2,)), ((2, 65_537), (-1,)), ((2, 9), (-1, torch.float64)), ((), (0,))],
    ids=["axis", "axis from the end", "too long", "doubles", "no axis"],
)
def test_other_softmaxes_stay(shape: tuple[int, ...], arguments: tuple[object, ...]) -> None:
    graph = softmax_of(shape, *arguments)
    (decision,) = insert_softmax_layernorm(graph, NOTHING, portable=True)
    assert (decision.where, decision.what) == ("softmax_int", "softmax left in float")
    assert only(graph, aten.softmax.int).args[1:] == arguments


@pytest.mark.parametrize(("rows", "shape"), [(2, (1, 7)), (8, (4, 7)), (1, (1, 7))])
def test_composites_have_the_shape_of_one_image(rows: int, shape: tuple[int, ...]) -> None:
    graph = softmax_of((rows, 7), -1)
    insert_softmax_layernorm(graph, NOTHING, portable=True)
    assert composites_of(graph, batch=2) == (CompositeForm(kind="softmax", shape=shape),)
