"""Trained weights put into a graph."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixport.quantize.integers.nearest import float_weights
from mixport.quantize.prepared import Prepared
from mixport.train.network.graph_weights import as_float32, put_weights
from mixport.train.network.layers import TrainedLayers
from tests.models import repeated
from tests.trained_nets import CPU, given_of, residual


def test_the_graph_becomes_the_model_with_these_weights(tmp_path: Path) -> None:
    given = given_of(tmp_path)
    layers = TrainedLayers(given.prepared, device=CPU)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in layers.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    values = layers.give()
    put_weights(given.prepared, values)
    for node, width in given.prepared.widths.items():
        weight, bias = float_weights(given.prepared.graph, node)
        np.testing.assert_array_equal(weight, values[f"weight/{width.name}"].numpy())
        assert (bias is None) == (width.name == "narrow")
        if bias is not None:
            np.testing.assert_array_equal(bias, values[f"bias/{width.name}"].numpy())
    trained = residual().requires_grad_(False)
    trained.load_state_dict(
        {
            f"{name}.{kind}": one
            for key, one in values.items()
            for kind, name in [key.split("/")]
            if one.numel()
        }
    )
    x = given.images[:2]
    with torch.no_grad():
        got, wanted, before = given.prepared.graph(x), trained(x), given.model.module(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # float sums in another order
    assert float((got - before).abs().max()) > 0.01


def test_layers_that_shared_a_weight_part(tmp_path: Path) -> None:
    prepared: Prepared = given_of(tmp_path, module=repeated(1)).prepared
    values = {
        key: torch.full_like(value, float(number))
        for number, (key, value) in enumerate(TrainedLayers(prepared, device=CPU).give().items())
    }
    put_weights(prepared, values)
    for node, width in prepared.widths.items():
        weight, _ = float_weights(prepared.graph, node)
        assert np.unique(weight).tolist() == [float(values[f"weight/{width.name}"].flatten()[0])]


def test_a_layer_that_is_missing_is_our_bug(tmp_path: Path) -> None:
    prepared = given_of(tmp_path).prepared
    with pytest.raises(KeyError, match="weight/stem"):
        put_weights(prepared, {})


def test_a_parameter_as_numpy() -> None:
    value = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    found = as_float32(value)
    assert found.dtype == np.float32 and found.tolist() == [1.5, -2.0]
    assert as_float32(value.double()).dtype == np.float32
