"""Operators of core ATen get the names that quantisation knows; values stay (the fixture compares)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mixport.model.programs.fx_graph import aten
from mixport.quantize.graph.recompose.operators import rename_operators
from tests.unit.quantize.conftest import operators
from tests.unit.quantize.graph.recompose.conftest import Rewritten


class Wrapped(nn.Module):
    """A layer of an image, or of what `before` makes of it."""

    def __init__(self, layer: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.before = layer, before

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x))


def image(x: Tensor) -> Tensor:
    return x


def line(x: Tensor) -> Tensor:
    return x.flatten(2)


def volume(x: Tensor) -> Tensor:
    return x.reshape(-1, 3, 4, 4, 4)


CONVOLUTIONS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], str]] = {
    "conv1d": (nn.Conv1d(3, 4, 3, 2, 1), line, "conv1d"),
    "conv2d": (nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=3), image, "conv2d"),
    "conv2d without bias": (nn.Conv2d(3, 4, 1, bias=False), image, "conv2d"),
    "conv3d": (nn.Conv3d(3, 4, 2), volume, "conv3d"),
    "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 3, 2), line, "conv_transpose1d"),
    "conv_transpose2d": (
        nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3, dilation=2),
        image,
        "conv_transpose2d",
    ),
    "conv_transpose3d": (nn.ConvTranspose3d(3, 2, 2), volume, "conv_transpose3d"),
}


@pytest.mark.parametrize(("layer", "before", "name"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_a_convolution_has_the_name_of_its_rank_and_direction(
    rewritten: Rewritten, layer: nn.Module, before: Callable[[Tensor], Tensor], name: str
) -> None:
    found = operators(rewritten(Wrapped(layer, before), rename_operators))
    assert (found[name], found["convolution"]) == (1, 0)


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "softmax": (lambda x: x.softmax(1), "_softmax", "softmax"),
    "log_softmax": (lambda x: x.log_softmax(-1), "_log_softmax", "log_softmax"),
    "adaptive pool": (nn.AdaptiveAvgPool2d((3, 5)), "_adaptive_avg_pool2d", "adaptive_avg_pool2d"),
    "max pool": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "max_pool2d_with_indices", "max_pool2d"),
    "layer norm": (nn.LayerNorm((8, 8), eps=1e-2), "native_layer_norm", "layer_norm"),
    "layer norm without weights": (
        nn.LayerNorm(8, elementwise_affine=False),
        "native_layer_norm",
        "layer_norm",
    ),
    "group norm": (nn.GroupNorm(3, 3, eps=1e-2), "native_group_norm", "group_norm"),
}


@pytest.mark.parametrize(("layer", "core", "name"), OTHERS.values(), ids=OTHERS.keys())
def test_an_operator_of_core_aten_has_its_usual_name(
    rewritten: Rewritten, layer: Callable[[Tensor], Tensor], core: str, name: str
) -> None:
    before: Counter[str] = Counter()
    graph = rewritten(Wrapped(layer, image), lambda graph: before.update(operators(graph)), rename_operators)
    after = operators(graph)
    assert (before[core], before[name]) == (1, 0)  # torch does decompose it so
    assert (after[core], after[name]) == (0, 1)
    assert after["getitem"] == after["<built-in function getitem>"] == 0


def test_a_pool_whose_indices_are_read_keeps_both_results(rewritten: Rewritten) -> None:
    def both(x: Tensor) -> Tensor:
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        return values + indices

    found = operators(rewritten(Wrapped(both, image), rename_operators))
    assert (found["max_pool2d_with_indices"], found["max_pool2d"]) == (1, 0)


def strided(x_shape: tuple[int, ...], *args: object) -> fx.GraphModule:
    """as_strided of an input of this shape, as the rest of a graph reads it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.as_strided.default, (x, *args))
    graph.output(graph.call_function(aten.relu.default, (node,)))
    x.meta["shape"], node.meta["shape"] = x_shape, tuple(args[0])
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    ("args", "dropped"),
    [
        (([2, 4, 1, 1], [4, 1, 4, 4]), True),
        (([2, 4, 1, 1], [4, 1, 1, 1]), True),
        (([2, 4, 1, 1], [1, 2, 1, 1]), False),
        (([2, 4, 1, 1], [4, 1, 1, 1], 0), False),
        (([2, 2, 1, 1], [4, 1, 1, 1]), False),
    ],
    ids=["channels last", "dense", "turned", "with an offset", "another shape"],
)
def test_strides_of_single_elements_alone_are_no_movement(args: tuple[object, ...], dropped: bool) -> None:
    graph = strided((2, 4, 1, 1), *args)
    x = torch.randn(2, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    expected = graph(x)
    rename_operators(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert operators(graph)["as_strided"] == (0 if dropped else 1)
    assert torch.equal(graph(x), expected)
