"""Which layers are regularised."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils import parametrize

from mixport.train.robust.layers import is_depthwise, regular_layers
from mixport.train.robust.satnl import SatNL


@pytest.mark.parametrize(
    ("layer", "depthwise"),
    [
        (nn.Conv2d(6, 6, 3, groups=6), True),
        (nn.Conv2d(6, 12, 3, groups=6), True),
        (nn.Conv1d(4, 4, 3, groups=4), True),
        (nn.Conv2d(6, 6, 3, groups=3), False),
        (nn.Conv2d(1, 6, 3), False),
        (nn.Conv2d(6, 6, 1), False),
        (nn.Linear(1, 4), False),
        (nn.BatchNorm2d(4), False),
    ],
)
def test_depthwise_convolutions_read_one_channel_each(layer: nn.Module, *, depthwise: bool) -> None:
    assert is_depthwise(layer) is depthwise


def test_convolutions_and_linear_layers_by_name_without_depthwise_ones() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Conv1d(4, 2, 1), nn.Embedding(3, 2), nn.Linear(2, 2))
    assert [name for name, _ in regular_layers(net)] == ["0", "1.2", "2", "4"]
    assert [name for name, _ in regular_layers(net, depthwise=True)] == ["0", "1.0", "1.2", "2", "4"]
    assert dict(regular_layers(net))["1.2"] is block[2]


def test_a_bounded_layer_is_one_still() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    parametrize.register_parametrization(net[0], "weight", SatNL(1.0))
    assert [name for name, _ in regular_layers(net)] == ["0"]
