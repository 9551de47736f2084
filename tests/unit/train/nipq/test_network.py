"""The network of noise: what is free, what is drawn, and that without noise it is the real quantisers."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from mixport.quantize.sites.site_plan import SitePlan
from mixport.train.network.quantised import code_range
from mixport.train.network.whole import WholeGraph
from mixport.train.nipq import network as module
from mixport.train.nipq.network import NoisyNetwork, free_sites, tensor_names
from mixport.train.nipq.noise import NoiseKind, error_quantiles
from tests.trained_nets import CPU, FREE, LAYERS, Given, given_of, near, site_of

INNER = range(1, 5)
FEW = (2.5, 3.0, 5.0, 4.5)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Tests leave its graph as it is."""
    return given_of(tmp_path_factory.mktemp("noisy"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def passed(network: NoisyNetwork, x: Tensor, *, noise: int, widths: int) -> Tensor:
    """A pass with noise and drawn widths of these seeds."""
    network.draw(seeded(noise), largest=len(x) * network.largest)
    return network(x, seeded(widths))


class Rounded:
    """Every site and layer behind the quantisers of rounding to nearest, with float biases."""

    def __init__(self, given: Given) -> None:
        self.given = given

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        params = self.given.start.params[site.name]
        codes = (value / params.scale).round() + params.zero_point
        return (codes.clamp(params.qmin, params.qmax) - params.zero_point) * params.scale

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None]:
        one = self.given.start.integers[layer]
        codes = torch.as_tensor(one.codes).float()
        weight = codes * torch.as_tensor(one.scales).view(-1, *[1] * (codes.dim() - 1))
        return weight, None if one.bias is None else torch.as_tensor(one.bias)


def test_free_sites_are_what_inner_layers_read(given: Given) -> None:
    assert free_sites(given.prepared) == FREE
    assert {site_of(given.prepared, name).role for name in FREE} == {"compute"}
    assert site_of(given.prepared, "pool").bits == 8, "what the last layer reads is an edge"


def test_where_all_have_as_many_bits_as_the_edges_the_output_is_not_free(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    given = given_of(tmp_path_factory.mktemp("wide"), scheme="w4a8")
    assert free_sites(given.prepared) == ("body", "wide", "pool"), "those of 8 bits that no scale is tied to"


def test_a_tensor_is_known_by_its_first_site(given: Given) -> None:
    names = tensor_names(given.prepared)
    assert names.keys() == {site.name for site in given.prepared.plan.sites}
    assert [names[name] for name in FREE] == ["stem", "body", "add", "wide"]


def test_without_noise_it_is_the_real_quantisers(given: Given) -> None:
    network, x = given.noisy(), given.images
    with torch.no_grad():
        got = network(x)
        wanted = WholeGraph(given.prepared, device=CPU).run(x, quantised=Rounded(given))
        floats = WholeGraph(given.prepared, device=CPU).run(x, quantised=None)
    near(got, wanted)
    assert float((floats - wanted).abs().max()) > 0.01 * float(wanted.abs().max())


def test_without_noise_weights_have_the_nearest_codes_at_the_learned_bound(given: Given) -> None:
    network = given.noisy(weight_bits=(8.0, 2.0, 3.4, 5.6, 8.0, 8.0))
    with torch.no_grad():
        network(given.images[:1])
        for number, bits in zip(range(6), (8, 2, 3, 6, 8, 8), strict=True):
            low, high = code_range(bits)
            node, weight, bound = (
                network.layers.nodes[number],
                network.layers.weight[number],
                network.bound[number],
            )
            found = network.weights(node)
            assert found is not None
            scale = (bound / high).view(-1, *[1] * (weight.dim() - 1))
            assert torch.equal(found[0], (weight / scale).round().clamp(low, high) * scale)
            start = torch.as_tensor(given.start.integers[node].scales)
            first = code_range(8 if number in (0, 5) else 4)[1]
            torch.testing.assert_close(bound, start * first, rtol=1e-6, atol=0)  # one rounding


def test_without_noise_activations_have_the_codes_of_the_learned_interval(given: Given) -> None:
    network = given.noisy(activation_bits=FEW)
    x = 2.0 * torch.randn(500, generator=seeded(1))
    with torch.no_grad():
        network(given.images[:1])
        zeros: list[int] = []
        for number, (name, bits) in enumerate(zip(FREE, (2, 3, 5, 4), strict=True)):
            levels, params = 2**bits - 1, given.start.params[name]
            scale = network.interval[number] / levels
            share = (params.zero_point - params.qmin) / (params.qmax - params.qmin)
            zero = round(share * levels)
            wanted = (x / scale).round().clamp(-zero, levels - zero) * scale
            assert torch.equal(network.activation(site_of(given.prepared, name), x), wanted)
            assert len(wanted.unique()) == levels + 1
            zeros.append(zero)
        assert zeros[:3] == [0, 0, 0] and zeros[3] > 0, "the last one has both signs"
        for name in ("input.codes", "stem", "narrow", "pool"):
            site = site_of(given.prepared, name)
            # Others are the calibrated ones whatever the widths are.
            wanted = Rounded(given).activation(site, x)
            torch.testing.assert_close(network.activation(site, x), wanted, rtol=1e-6, atol=1e-6)  # float32


@pytest.mark.parametrize("noise", ["histogram", "uniform"])
def test_seeds_decide_a_noisy_pass(given: Given, noise: NoiseKind) -> None:
    network, x = given.noisy(activation_bits=FEW, weight_bits=[3.5] * 6, noise=noise), given.images
    with torch.no_grad():
        first = passed(network, x, noise=1, widths=2)
        assert torch.equal(first, passed(network, x, noise=1, widths=2))
        others = passed(network, x, noise=3, widths=2), passed(network, x, noise=1, widths=3)
        again = given.noisy(activation_bits=FEW, weight_bits=[3.5] * 6, noise=noise)
        assert torch.equal(first, passed(again, x, noise=1, widths=2))
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("noise", ["histogram", "uniform"])
def test_noise_of_8_bits_is_small_and_that_of_2_is_not(given: Given, noise: NoiseKind) -> None:
    x = given.images
    with torch.no_grad():
        wanted = WholeGraph(given.prepared, device=CPU).run(x, quantised=None)
        off = [
            float((passed(network, x, noise=1, widths=2) - wanted).square().mean())
            for bits in (2.0, 4.0, 8.0)
            for network in [given.noisy(activation_bits=[bits] * 4, weight_bits=[bits] * 6, noise=noise)]
        ]
    assert off[0] > 2 * off[1] and off[1] > 2 * off[2]


def test_noisy_weights_stay_near_their_own(given: Given) -> None:
    network = given.noisy(weight_bits=[3.0] * 6, learn=(True, False))
    with torch.no_grad():
        passed(network, given.images, noise=1, widths=2)
        assert network._drawn is not None  # pyright: ignore[reportPrivateUsage]
        network._drawn = (torch.full((6,), 3.0), network._drawn[1])  # pyright: ignore[reportPrivateUsage]
        for number in INNER:
            weight, bound = network.layers.weight[number], network.bound[number]
            found = network.weights(network.layers.nodes[number])
            assert found is not None
            wide = bound.view(-1, 1, 1, 1)
            off = (found[0] - weight.clamp(-wide, wide)).abs()
            # Half a step of 2^(bits - 1) - 1 codes on either side, and float32 rounding.
            assert bool((off <= 0.5 * wide / 3 + 1e-6).all())
            assert float((off / wide).max()) > 0.45 / 3, "and noise reaches that far"
            inside = weight.abs() < wide
            assert bool((off[inside] > 0).float().mean() > 0.9) and not off[~inside].any()


def test_edges_have_no_noise(given: Given) -> None:
    network = given.noisy(weight_bits=[2.0] * 6)
    with torch.no_grad():
        network(given.images)
        real = [network.weights(network.layers.nodes[number]) for number in (0, 5)]
        passed(network, given.images, noise=1, widths=2)
        for number, before in zip((0, 5), real, strict=True):
            now = network.weights(network.layers.nodes[number])
            assert now is not None and before is not None and torch.equal(now[0], before[0])


def test_noise_has_to_be_drawn_first(given: Given) -> None:
    with pytest.raises(RuntimeError, match=r"draw\(\)"):
        given.noisy()(given.images, seeded(1))


@pytest.mark.parametrize("learn", [(True, True), (False, True), (True, False)])
def test_everything_that_is_learned_has_a_gradient(given: Given, learn: tuple[bool, bool]) -> None:
    network = given.noisy(learn=learn)
    passed(network, given.images, noise=1, widths=2).square().sum().backward()
    for number in range(6):
        assert network.layers.weight[number].grad is not None
        bound = network.bound[number].grad
        assert (bound is not None and bool(bound.any())) == (number in INNER)
    for interval in network.interval:
        assert interval.grad is not None and float(interval.grad) != 0.0
    for widths, wanted in (
        (network.widths, [learn[0] and number in INNER for number in range(6)]),
        (network.site_widths, [learn[1]] * 4),
    ):
        raw = widths.raw.grad
        assert (raw is not None and raw.ne(0).tolist() == wanted) or (raw is None and not any(wanted))


def test_fixed_layers_keep_the_width_of_the_rule(given: Given) -> None:
    network = given.noisy(weight_bits=[3.0] * 6)
    assert network.widths.values()[::5] == (8.0, 8.0)
    assert network.widths.values()[1:5] == pytest.approx([3.0] * 4, abs=1e-5)
    still = given.noisy(weight_bits=[3.0] * 6, activation_bits=[2.0] * 4, learn=(False, False))
    assert (
        still.widths.values() == (8.0, 3.0, 3.0, 3.0, 3.0, 8.0) and still.site_widths.values() == (2.0,) * 4
    )


def test_intervals_that_run_away_are_held(given: Given) -> None:
    network = given.noisy()
    bound, interval = network.bound[1].detach().clone(), float(network.interval[0].detach())
    with torch.no_grad():
        network.bound[1][:3] *= 100.0
        network.interval[0] *= -1.0
        network.widths.raw[2] = 50.0
        network.site_widths.raw[1] = -50.0
    network.hold()
    assert torch.equal(network.bound[1][:3], bound[:3] * 16) and torch.equal(network.bound[1][3:], bound[3:])
    assert float(network.interval[0].detach()) == interval / 16
    assert int(network.held) == 4
    assert network.widths.values()[2] == pytest.approx(8.0, abs=1e-5)
    assert network.site_widths.values()[1] == pytest.approx(2.0 + 1 / 64, abs=1e-5)
    assert network.widths.steps_held() == (0, 0, 1, 0, 0, 0)
    assert network.site_widths.steps_held() == (0, 1, 0, 0)
    network.hold()
    assert int(network.held) == 4


def test_the_largest_tensor_behind_a_proxy(given: Given) -> None:
    # What the layers behind stem, body, add and wide read of one image.
    sizes = (8 * 8 * 8, 12 * 8 * 8, 8 * 8 * 8, 16 * 3 * 3)
    assert given.noisy().largest == max(*sizes, 12 * 8 * 9) == 864


def test_histograms_are_made_again_every_16_steps(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(*args: Tensor, **kwargs: Tensor) -> Tensor:
        made.append(1)
        return error_quantiles(*args, **kwargs)

    monkeypatch.setattr(module, "error_quantiles", counted)
    network, x = given.noisy(), given.images[:1]
    network.draw(seeded(1), largest=network.largest)
    with torch.no_grad():
        for step in range(17):
            network(x, seeded(2))
            network(x)  # a look at real quantisers between steps makes none
            assert len(made) == (16 if step == 16 else 8), "four layers and four sites, under any name"
    network.draw(seeded(1), largest=network.largest)
    with torch.no_grad():
        network(x, seeded(2))
    assert len(made) == 24, "an epoch starts with its own"


def test_biases_follow_weights(given: Given) -> None:
    network, x = given.noisy(), given.images
    with torch.no_grad():
        before = network(x)
        floats = {number: network.layers.bias_of(number, network.layers.weight[number]) for number in INNER}
        network.centre([x])
        for number, wanted in floats.items():
            got = network.layers.bias_of(number, network.layers.float_weight(number))
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)  # a sum added and taken off
        after = network(x)
    assert float((after - before).abs().max()) > 1e-3, "behind real quantisers biases make up for rounding"


def test_a_checkpoint_is_the_whole_network(given: Given) -> None:
    network, other = given.noisy(), given.noisy(activation_bits=FEW)
    network.centre([given.images])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    network.hold()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(given.images), other(given.images))
    assert other.widths.values() == network.widths.values()


def test_a_site_has_its_own_errors_whatever_layer_has_its_name(given: Given) -> None:
    """The site of a convolution's result has the convolution's name."""
    assert "body" in FREE and "body" in LAYERS
    network = given.noisy(activation_bits=[3.0] * 4, learn=(False, False))
    step = float(network.interval[FREE.index("body")].detach()) / 7
    network.draw(seeded(1), largest=network.largest * 12)
    with torch.no_grad():
        passed(network, given.images, noise=1, widths=2)
        network.draw(seeded(1), largest=network.largest * 12)
        network.weights(network.layers.nodes[LAYERS.index("body")])
        found = network.activation(site_of(given.prepared, "body"), torch.full((200, 10), 2.3 * step))
    # Rounding adds -0.3 steps everywhere, to within a bin of 1/256.
    torch.testing.assert_close(found, torch.full((200, 10), 2.0 * step), rtol=0, atol=step / 100)
