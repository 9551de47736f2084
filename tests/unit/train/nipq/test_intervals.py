"""Learned intervals at whole widths."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mixport.arithmetic.quant_params import QuantParams
from mixport.records.choices.width_table import WidthTable
from mixport.train.nipq.intervals import learned_params
from mixport.train.nipq.network import NoisyNetwork
from tests.reconstruction import seeded
from tests.trained_nets import FREE, Given, Residual, given_of, site_of, with_target

LENGTHS = (3.0, 1.7, 2.3, 0.9)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """What the noise phase starts from."""
    return given_of(tmp_path_factory.mktemp("intervals"))


@pytest.fixture
def network(given: Given) -> NoisyNetwork:
    return with_intervals(given)


def with_intervals(given: Given) -> NoisyNetwork:
    network = given.noisy()
    with torch.no_grad():
        for interval, length in zip(network.interval, LENGTHS, strict=True):
            interval.fill_(length)
    return network


def whole(tmp_path_factory: pytest.TempPathFactory, **activations: int) -> Given:
    return given_of(tmp_path_factory.mktemp("whole"), table=WidthTable(activations=activations))


def test_an_interval_becomes_a_scale_at_its_width(
    network: NoisyNetwork, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shipped = whole(tmp_path_factory, stem=3, body=2, add=6, wide=5)
    found = learned_params(network, shipped.prepared, shipped.start.params)
    for name, bits, length in (("stem.a3", 3, 3.0), ("body", 2, 1.7), ("add.a6", 6, 2.3)):
        assert found[name] == QuantParams(
            scale=float(np.float32(np.float32(length).item() / (2**bits - 1))),
            zero_point=0,
            qmin=0,
            qmax=2**bits - 1,
            storage="uint8",
        )
    first = network.prepared.plan, shipped.start.params["wide"]
    before = learned_params(network, network.prepared, _params(network))["wide"]
    assert found["wide"].zero_point == round(network.below[3] * 31) != before.zero_point, first
    assert (found["wide"].qmin, found["wide"].qmax) == (0, 31)
    assert found["wide"].scale == float(np.float32(np.float32(0.9).item() / 31))


def _params(network: NoisyNetwork) -> dict[str, QuantParams]:
    """Any parameters: only the storage type of free sites is taken from them."""
    one = QuantParams(scale=1.0, zero_point=0, qmin=0, qmax=255, storage="uint8")
    return {site.name: one for site in network.prepared.plan.sites}


def test_everything_else_stays_calibrated(
    network: NoisyNetwork, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shipped = whole(tmp_path_factory, stem=3, body=2, add=6, wide=5)
    found = learned_params(network, shipped.prepared, shipped.start.params)
    assert found.keys() == shipped.start.params.keys()
    kept = {name for name, one in found.items() if one == shipped.start.params[name]}
    assert kept == {"input.codes", "stem", "narrow", "add", "deep", "pool"}


def test_at_8_bits_tied_carriers_stay_and_free_tensors_learn(
    network: NoisyNetwork, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shipped = whole(tmp_path_factory, stem=8, body=8, add=8, wide=8)
    found = learned_params(network, shipped.prepared, shipped.start.params)
    names = {site.name for site in shipped.prepared.plan.sites}
    assert "stem.a8" not in names and "stem.a4" not in names, "the carrier's codes are what the layer reads"
    for name in ("stem", "add", "narrow"):
        assert found[name] == shipped.start.params[name]
    for name, length in (("body", 1.7), ("wide", 0.9)):
        assert found[name].scale == float(np.float32(np.float32(length).item() / 255))
        assert found[name].qmax == 255


def test_the_widths_of_the_noise_phase_give_its_real_quantisers(given: Given, network: NoisyNetwork) -> None:
    found = learned_params(network, given.prepared, given.start.params)
    x = 2.0 * torch.randn(500, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network(given.images[:1])
        for name in FREE:
            params = found[name]
            codes = (x / params.scale).round() + params.zero_point
            wanted = (codes.clamp(params.qmin, params.qmax) - params.zero_point) * params.scale
            got = network.activation(site_of(given.prepared, name), x)
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # the scale is rounded to float32


def test_scales_are_on_the_target_s_grid(given: Given) -> None:
    coarse = with_target(given, "power-of-two")
    network = with_intervals(coarse)
    found = learned_params(network, coarse.prepared, coarse.start.params)
    for name in FREE:
        assert coarse.prepared.rule.grid.holds(found[name].scale)


class Clamped(Residual):
    """Residual whose inner convolutions have an upper bound of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Hardtanh(0.0, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x))
        x = self.act(x + self.narrow(self.act(self.body(x))))
        return self.head(self.pool(torch.relu(self.deep(self.wide(x)))).flatten(1))


def test_a_clamp_keeps_its_upper_bound(tmp_path_factory: pytest.TempPathFactory) -> None:
    given = given_of(tmp_path_factory.mktemp("clamped"), module=seeded(Clamped))
    network = given.noisy()
    site = site_of(given.prepared, "body")
    assert site.bounds == (0.0, 0.5)
    with torch.no_grad():
        network.interval[FREE.index("body")].fill_(0.9)
    found = learned_params(network, given.prepared, given.start.params)["body"]
    # Steps of 0.06: codes up to 8 reach 0.48, the nearest to 0.5.
    assert (found.qmin, found.qmax, found.zero_point) == (0, 8, 0)
    assert found.scale == float(np.float32(np.float32(0.9).item() / 15))
