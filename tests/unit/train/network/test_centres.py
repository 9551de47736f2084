"""Biases that follow weights: the mean of what each layer reads."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import operator_of
from mixport.train.network.centres import set_centres
from mixport.train.network.layers import TrainedLayers
from mixport.train.network.whole import WholeGraph
from tests.trained_nets import CPU, LAYERS, Given, given_of

WITH_BIAS = [number for number, name in enumerate(LAYERS) if name != "narrow"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return given_of(tmp_path_factory.mktemp("centres"))


def read_by(given: Given, x: Tensor) -> dict[fx.Node, Tensor]:
    """What each layer of the float graph reads."""
    seen: dict[fx.Node, Tensor] = {}
    watch = {node: partial(seen.__setitem__, node) for node in given.prepared.widths}
    with torch.no_grad():
        WholeGraph(given.prepared, device=CPU).run(x, quantised=None, watch=watch)
    return seen


def mean_outputs(node: fx.Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of each channel, over images and places."""
    with torch.no_grad():
        out = operator_of(node)(x, weight, bias, *node.args[3:])
    return out.double().movedim(1, -1).flatten(0, -2).mean(0)


def centred(given: Given) -> TrainedLayers:
    layers = TrainedLayers(given.prepared, device=CPU)
    graph = WholeGraph(given.prepared, device=CPU)
    weight = layers.weight
    set_centres(layers, graph, [given.images], effective=lambda number: weight[number])
    return layers


def test_outputs_stay_when_centres_are_set(given: Given) -> None:
    before, layers = TrainedLayers(given.prepared, device=CPU), centred(given)
    for number in WITH_BIAS:
        got, wanted = layers.bias_of(number, layers.weight[number]), before.bias[number]
        assert got is not None
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)  # a sum of up to 72, added and taken off
        assert not torch.equal(layers.bias[number], wanted), "it is that of centred inputs now"
    assert not layers.centre[LAYERS.index("narrow")].any(), "nothing takes the mean up"


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "narrow"])
def test_mean_outputs_stay_where_weights_move(given: Given, name: str) -> None:
    layers, number = centred(given), LAYERS.index(name)
    node = layers.nodes[number]
    x = read_by(given, given.images)[node]
    weight = layers.weight[number].detach()
    bias = layers.bias_of(number, weight)
    before = mean_outputs(node, x, weight, bias)
    moved = weight + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    after = mean_outputs(node, x, moved, layers.bias_of(number, moved))
    # Means over up to 12 * 64 places of float32 sums near 1.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert float((mean_outputs(node, x, moved, bias) - before).abs().max()) > 1e-3, "by themselves they move"


def test_a_mean_counts_padding_and_groups(given: Given) -> None:
    layers = centred(given)
    seen = read_by(given, given.images)
    body, wide = (LAYERS.index(name) for name in ("body", "wide"))
    x = seen[layers.nodes[body]]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1)).double()
    size = x.shape[-1]
    for row in range(3):
        for column in range(3):
            part = padded[:, :, row : row + size, column : column + size].mean((0, 2, 3))
            for centre in layers.centre[body][:, :, row, column]:
                torch.testing.assert_close(centre.double(), part, rtol=1e-5, atol=1e-6)  # float32
    x = seen[layers.nodes[wide]].double()
    middle = x[:, :, 1:-1:2, 1:-1:2].mean((0, 2, 3))  # stride 2, no padding
    got = layers.centre[wide][:, :, 1, 1].double()
    torch.testing.assert_close(got[:8], middle[:4].expand(8, 4), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[8:], middle[4:].expand(8, 4), rtol=1e-5, atol=1e-6)


def test_256_images_are_enough(given: Given) -> None:
    taken: list[int] = []

    def batches() -> Iterator[Tensor]:
        for number in range(10):
            taken.append(number)
            yield given.images[:1].expand(100, -1, -1, -1)

    layers = TrainedLayers(given.prepared, device=CPU)
    graph = WholeGraph(given.prepared, device=CPU)
    set_centres(layers, graph, batches(), effective=lambda number: layers.weight[number])
    assert taken == [0, 1, 2]


def test_batches_count_by_their_images(given: Given) -> None:
    layers = TrainedLayers(given.prepared, device=CPU)
    parts = [given.images[:1], given.images[1:]]
    graph = WholeGraph(given.prepared, device=CPU)
    set_centres(layers, graph, parts, effective=lambda number: layers.weight[number])
    for got, wanted in zip(layers.centre, centred(given).centre, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # float sums depend on the batch


def test_biases_are_those_of_the_weight_that_is_named(given: Given) -> None:
    layers, other = TrainedLayers(given.prepared, device=CPU), centred(given)
    graph = WholeGraph(given.prepared, device=CPU)
    set_centres(layers, graph, [given.images], effective=lambda number: 0 * layers.weight[number])
    number = LAYERS.index("body")
    assert torch.equal(layers.centre[number], other.centre[number])
    assert torch.equal(layers.bias[number], TrainedLayers(given.prepared, device=CPU).bias[number])
