"""A prepared graph run as a whole."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import operator_of
from mixport.quantize.sites.site_plan import SitePlan
from mixport.train.network.whole import WholeGraph
from tests.trained_nets import CPU, Given, given_of


@pytest.fixture(scope="module", params=["ort-cpu", "onnx-int8"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """With any number of images at once, and with a graph for one image."""
    return given_of(tmp_path_factory.mktemp("whole"), target=request.param)


class Recorded:
    """Leaves everything as it is, and remembers what it was asked."""

    def __init__(self) -> None:
        self.sites: list[str] = []
        self.layers: list[fx.Node] = []

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        self.sites.append(site.name)
        return value

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        self.layers.append(layer)
        return None


def test_without_quantisers_it_is_the_float_model(given: Given) -> None:
    x = given.images
    with torch.no_grad():
        got, wanted = WholeGraph(given.prepared, device=CPU).run(x, quantised=None), given.model.module(x)
    assert got.shape == (12, 5)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # float sums depend on the batch


def test_every_site_and_layer_is_asked_for(given: Given) -> None:
    recorded, graph = Recorded(), WholeGraph(given.prepared, device=CPU)
    x = given.images[:1]
    with torch.no_grad():
        got = graph.run(x, quantised=recorded)
        assert torch.equal(got, graph.run(x, quantised=None))
    assert sorted(recorded.sites) == sorted(site.name for site in given.prepared.plan.sites)
    assert recorded.layers == list(given.prepared.widths)


def test_what_layers_read_is_told(given: Given) -> None:
    graph, seen = WholeGraph(given.prepared, device=CPU), dict[fx.Node, list[Tensor]]()
    first, *_, last = given.prepared.widths
    watch = {node: seen.setdefault(node, []).append for node in (first, last)}
    x = given.images[:3]
    with torch.no_grad():
        got = graph.run(x, quantised=None, watch=watch)
        assert torch.equal(torch.cat(seen[first]), x)
        floats = given.model.module.get_submodule("head")
        wanted = torch.cat([operator_of(last)(one, floats.weight, floats.bias) for one in seen[last]])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # float sums depend on the batch


def test_it_has_gradients(given: Given, tmp_path: Path) -> None:
    x = given.images[:2].requires_grad_()
    WholeGraph(given.prepared, device=CPU).run(x, quantised=None).sum().backward()
    assert x.grad is not None and bool(x.grad.any())
