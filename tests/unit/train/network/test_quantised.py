"""The network of real quantisers: where it starts, that it computes what ships, where it is held."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import operator_of
from mixport.quantize.emit.emit import emit
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.sites.site_plan import SitePlan
from mixport.records.targets import AccumulatorRules, load_target
from mixport.train.network.finish import finish
from mixport.train.network.quantised import QuantisedNetwork, learned_sites
from mixport.train.network.whole import WholeGraph
from tests.trained_nets import CPU, FREE, LAYERS, Given, given_of, moved, near, site_of, with_target

INNER = [number for number, name in enumerate(LAYERS) if name not in {"stem", "head"}]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Tests leave its graph as it is."""
    return given_of(tmp_path_factory.mktemp("quantised"))


@pytest.fixture
def network(given: Given) -> QuantisedNetwork:
    return given.quantised()


def codes(network: QuantisedNetwork, number: int) -> np.ndarray:
    """Codes that the network uses, from its values."""
    scale = network.scale[number].detach()
    weight = network.shipped_weight(number).detach()
    return np.rint((weight / scale.view(-1, *[1] * (weight.dim() - 1))).numpy()).astype(np.int64)


def test_tied_carriers_are_not_learned(given: Given) -> None:
    assert learned_sites(given.prepared.plan) == {*FREE, "pool"}
    tied = {name for group in given.prepared.plan.groups for name in group.members}
    assert tied == {"stem", "narrow", "add"}


def test_a_layer_that_reads_a_tied_carrier_learns_no_step(tmp_path_factory: pytest.TempPathFactory) -> None:
    given = given_of(tmp_path_factory.mktemp("wide"), scheme="w4a8")
    found = learned_sites(given.prepared.plan)
    assert "stem" not in found and "add" not in found and "body" in found
    network = given.quantised()
    network(given.images).square().sum().backward()
    for name, step in zip((site.name for site in given.prepared.plan.sites), network.step, strict=True):
        assert (step.grad is not None) == (name in found)


class Kept:
    """The network's own quantisers, and the codes they give."""

    def __init__(self, network: QuantisedNetwork) -> None:
        self.network, self.params = network, network.params()
        self.codes: dict[str, np.ndarray] = {}

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        found, params = self.network.activation(site, value), self.params[site.name]
        given = np.rint(found.detach().double().numpy() / params.scale).astype(np.int64) + params.zero_point
        before = self.codes.get(site.name)  # image by image where the batch is fixed
        self.codes[site.name] = given if before is None else np.concatenate([before, given])
        return found

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        return self.network.weights(layer)


@pytest.mark.parametrize("target", ["ort-cpu", "onnx-int8"])
@pytest.mark.parametrize("bounded", [False, True])
def test_it_computes_what_the_program_computes(target: str, bounded: bool, tmp_path: Path) -> None:
    """After every parameter has moved, so that nothing is left of where it started.

    A target's bound of neighbouring products may change 8-bit weights at the end: then it is the network of
    these integers that computes the same.
    """
    rules = load_target(target)
    if not bounded:
        rules = rules.model_copy(update={"accumulator": AccumulatorRules()})
    given = given_of(tmp_path, target=rules)
    network, x = moved(given.quantised()), given.images
    network.centre([x], corrected=True)
    with torch.no_grad():
        start = given.quantised()(x)
    made = finish(network, given.prepared)
    if bounded:
        network = QuantisedNetwork(given.prepared, made.params, made.integers, device=CPU)
    else:
        assert made.decisions == ()
    kept = Kept(network)
    with torch.no_grad():
        got = network(x)
        WholeGraph(given.prepared, device=CPU).run(x, quantised=kept)
    record = emit(given.prepared, made, given.batches, workdir=tmp_path)
    program = open_simulation(record).simulate(x.numpy(), overrides={})
    assert kept.codes.keys() == {site.name for site in record.activations}
    for name, codes in kept.codes.items():
        off = codes.reshape(-1) - program.codes[name].astype(np.int64).reshape(-1)
        # A float sum right between two codes may fall to either; none does here on x64.
        assert np.abs(off).max() <= 1 and np.count_nonzero(off) <= max(1, off.size // 200), name
    wanted = torch.as_tensor(program.codes[record.signature.logits.name])
    near(got, wanted)
    assert float((start - wanted).abs().max()) > 0.02 * float(wanted.abs().max()), "moving changed something"


def test_it_starts_at_the_integers_it_is_given(given: Given) -> None:
    """Of which some are not the nearest ones, as reconstruction has them."""
    generator = np.random.default_rng(3)
    integers = {
        node: replace(
            one, codes=np.clip(one.codes + generator.integers(-1, 2, one.codes.shape), -8, 7).astype(np.int8)
        )
        for node, one in given.start.integers.items()
    }
    network, floats = given.quantised(integers=integers), given.model.module.state_dict()
    for number, (one, name) in enumerate(zip(integers.values(), LAYERS, strict=True)):
        assert np.array_equal(codes(network, number), one.codes)
        weight, scale = floats[f"{name}.weight"], torch.as_tensor(one.scales)
        ratio = weight / scale.view(-1, *[1] * (weight.dim() - 1))
        away = ratio - torch.as_tensor(one.codes)
        kept = away.abs() <= 0.45
        now = network.layers.weight[number].detach()
        # A float32 quotient and product of the weight; away from it, 0.45 steps from the code.
        torch.testing.assert_close(now[kept], weight[kept], rtol=1e-5, atol=1e-7)
        ends = (torch.as_tensor(one.codes) + 0.45 * away.sign()) * scale.view(-1, *[1] * (weight.dim() - 1))
        torch.testing.assert_close(now[~kept], ends[~kept], rtol=1e-5, atol=1e-7)
        assert bool(kept.any()) and not bool(kept.all())


def test_biases_are_those_of_the_integers(given: Given) -> None:
    integers = {
        node: replace(one, bias=None if one.bias is None else one.bias + np.float32(0.5))
        for node, one in given.start.integers.items()
    }
    network = given.quantised(integers=integers)
    for number, one in enumerate(integers.values()):
        bias = network.layers.bias_of(number)
        assert (bias is None) == (one.bias is None)
        if bias is not None and one.bias is not None:
            assert np.array_equal(bias.detach().numpy(), one.bias)


def test_a_bias_is_a_whole_number_of_its_unit(network: QuantisedNetwork) -> None:
    moved(network)
    steps = {name: float(step.detach()) for name, step in zip(network.params(), network.step, strict=True)}
    reads = {"stem": "input.codes", "body": "stem.a4", "wide": "add.a4", "deep": "wide", "head": "pool"}
    for number, node in enumerate(network.layers.nodes):
        weighed = network.weights(node)
        assert weighed is not None
        _, bias = weighed
        name = LAYERS[number]
        if name == "narrow":
            assert bias is None
            continue
        assert bias is not None
        unit = np.float32(steps[reads[name]]) * network.scale[number].detach().numpy()
        ratio = bias.detach().double().numpy() / unit.astype(np.float64)
        # The product of a whole number and the unit is rounded to float32.
        np.testing.assert_allclose(ratio, np.rint(ratio), rtol=1e-6, atol=0)
        before = network.layers.bias_of(number, network.shipped_weight(number))
        assert before is not None
        assert bool(((bias - before).abs().detach() <= 0.51 * torch.as_tensor(unit)).all())


def test_activations_are_their_codes(given: Given, network: QuantisedNetwork) -> None:
    x = 3.0 * torch.randn(400, generator=torch.Generator().manual_seed(1))
    for site in given.prepared.plan.sites:
        params = given.start.params[site.name]
        got = network.activation(site, x).detach().numpy()
        scale = np.float32(params.scale)
        wanted = np.clip(
            np.rint(x.numpy() / scale), params.qmin - params.zero_point, params.qmax - params.zero_point
        )
        np.testing.assert_array_equal(got, wanted * scale)  # the same float32 operations
    two_sided = given.start.params["wide"]
    assert 0 < two_sided.zero_point < 15, "a site with both signs is among them"


def test_everything_that_may_move_has_a_gradient(given: Given, network: QuantisedNetwork) -> None:
    network(given.images).square().sum().backward()
    for parameter in (*network.layers.weight, *network.scale):
        assert parameter.grad is not None and bool(parameter.grad.any())
    for number, bias in enumerate(network.layers.bias):
        assert (bias.grad is not None) == (LAYERS[number] != "narrow")
    for name, step in zip((site.name for site in given.prepared.plan.sites), network.step, strict=True):
        assert (step.grad is not None and float(step.grad) != 0.0) == (name in {*FREE, "pool"})


@pytest.mark.parametrize("way", ["power-of-two", "per-tensor"])
def test_scales_stay_where_the_target_leaves_no_choice(given: Given, way: str) -> None:
    coarse = with_target(given, way)
    network = coarse.quantised()
    network(given.images).square().sum().backward()
    assert all(one.grad is None for one in (*network.scale, *network.step))
    before = network.params()
    with torch.no_grad():
        for one in (*network.scale, *network.step):
            one.mul_(0.5)
    network.hold()
    assert network.held.tolist() == [0, 0]
    assert {name: one.scale for name, one in network.params().items()} == {
        name: one.scale / 2 for name, one in before.items()
    }


def test_scales_and_steps_that_run_away_are_held(given: Given, network: QuantisedNetwork) -> None:
    body, deep = LAYERS.index("body"), LAYERS.index("deep")
    names = [site.name for site in given.prepared.plan.sites]
    first, step = network.scale[body].detach().clone(), float(network.step[names.index("body")].detach())
    with torch.no_grad():
        network.scale[body][:3] *= 100.0
        network.scale[deep][0] *= -1.0
        network.step[names.index("body")] *= 0.01
        network.step[names.index("stem")] *= 100.0  # tied: it is not learned
    network.hold()
    assert torch.equal(network.scale[body][:3], first[:3] * 16)
    assert torch.equal(network.scale[body][3:], first[3:]), "those that did not run away stay"
    assert float(network.scale[deep].min()) > 0
    assert float(network.step[names.index("body")].detach()) == step / 16
    assert network.held.tolist() == [4, 1]
    network.hold()
    assert network.held.tolist() == [4, 1]


def test_centres_leave_outputs_as_they_are(given: Given, network: QuantisedNetwork) -> None:
    with torch.no_grad():
        before, biases = network(given.images), [bias.clone() for bias in network.layers.bias]
        network.centre([given.images], corrected=False)
        near(network(given.images), before)
    changed = [not torch.equal(a, b) for a, b in zip(biases, network.layers.bias, strict=True)]
    assert changed == [name != "narrow" for name in LAYERS]


def test_corrected_biases_give_the_float_mean_of_every_layer(given: Given, network: QuantisedNetwork) -> None:
    seen: dict[int, Tensor] = {}
    watch = {node: partial(seen.__setitem__, number) for number, node in enumerate(network.layers.nodes)}
    with torch.no_grad():
        WholeGraph(given.prepared, device=CPU).run(given.images, quantised=None, watch=watch)
    floats = given.model.module.state_dict()

    def means(number: int, weight: Tensor, bias: Tensor | None) -> Tensor:
        node = network.layers.nodes[number]
        with torch.no_grad():
            out = operator_of(node)(seen[number], weight, bias, *node.args[3:])
        return out.double().movedim(1, -1).flatten(0, -2).mean(0)

    off: list[float] = []
    for corrected in (False, True):
        fresh = given.quantised()
        fresh.centre([given.images], corrected=corrected)
        for number, name in enumerate(LAYERS):
            if name == "narrow":
                continue
            weight = fresh.shipped_weight(number).detach()
            got = means(number, weight, fresh.layers.bias_of(number, weight))
            wanted = means(number, floats[f"{name}.weight"], floats[f"{name}.bias"])
            if corrected:
                # Means of float32 sums near 1.
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
            else:
                off.append(float((got - wanted).abs().max()))
    assert max(off) > 1e-2, "uncorrected, codes of 4 bits shift them"


def test_a_checkpoint_is_the_whole_network(given: Given, network: QuantisedNetwork) -> None:
    trained = moved(given.quantised())
    trained.centre([given.images], corrected=True)
    network.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(network(given.images), trained(given.images))


def test_edges_have_8_bits(given: Given, network: QuantisedNetwork) -> None:
    assert site_of(given.prepared, "pool").bits == 8
    for number in range(len(LAYERS)):
        largest = 127 if number not in INNER else 8
        assert np.abs(codes(network, number)).max() <= largest
        assert len(np.unique(codes(network, number))) > (16 if number not in INNER else 8)
