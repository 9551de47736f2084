from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from mixport.lower import lower
from mixport.quantize.channels.bottleneck_tensors import LinearChain, linear_chains
from mixport.quantize.channels.bottlenecks import change_bases
from mixport.quantize.channels.moments import channel_moments
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.graph.capture import Captured
from mixport.quantize.quantizer import quantize
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.choices.reconstruction_preset import PRESETS, ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.decision import Decision
from mixport.records.targets import load_target
from mixport.validate.validate import validate
from tests.reconstruction import calibration_of, float_model, seeded
from tests.unit.quantize.conftest import Capture

_RULE = ScaleRule()


class Mobile(nn.Module):
    """Stem, three inverted bottlenecks of which two are residual, head; what is between them is linear."""

    def __init__(
        self, *, pad: int = 0, bias: bool = True, after: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1, bias=bias)
        self.expand_a, self.expand_b = (
            nn.Conv2d(6, 12, 1 + 2 * pad, padding=pad, bias=bias),
            nn.Conv2d(6, 12, 1, bias=bias),
        )
        self.depth_a, self.depth_b = (nn.Conv2d(12, 12, 3, padding=1, groups=12) for _ in range(2))
        self.project_a, self.project_b = (nn.Conv2d(12, 6, 1, bias=bias) for _ in range(2))
        self.last, self.head, self.after = nn.Conv2d(6, 16, 1), nn.Linear(16, 5), after

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(nn.functional.relu6(self.stem(x)))
        x = x + self.project_a(torch.relu(self.depth_a(torch.relu(self.expand_a(x)))))
        x = self.after(x + self.project_b(torch.relu(self.depth_b(torch.relu(self.expand_b(x))))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def uneven(m: Mobile) -> None:
    """Channels of the chain far apart in size and in mean, undone in those that read them."""
    width = 4.0 ** torch.linspace(-2, 2, 6)
    for layer in (m.squeeze, m.project_a, m.project_b):
        layer.weight *= width.view(-1, 1, 1, 1)
        if layer.bias is not None:
            layer.bias.copy_(width * torch.linspace(-1, 1, 6))
    for layer in (m.expand_a, m.expand_b, m.last):
        layer.weight /= width.view(1, -1, 1, 1)


def chains_of(result: Captured, scheme: str = "w4a4") -> list[LinearChain]:
    return linear_chains(CodeFlow(result.graph), Scheme.parse(scheme))


def changed_bases(result: Captured, *, scheme: str = "w4a4") -> list[Decision]:
    """Change the bases of a captured graph on eight images; its outputs must stay."""
    images = 2 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected: Tensor = result.graph(images)
    decisions = change_bases(
        result.graph, torch.split(images, 4), images=8, scheme=Scheme.parse(scheme), rule=_RULE
    )
    with torch.no_grad():
        got: Tensor = result.graph(images)
    # weights of a basis are sums of those before it: float32 keeps about five of their places
    assert float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    return decisions


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_chain_takes_one_basis_and_the_function_stays(
    captured: Capture, pad: int, bias: bool
) -> None:
    result = captured(seeded(lambda: Mobile(pad=pad, bias=bias), uneven))
    (found,) = changed_bases(result)
    assert found.where == "squeeze"
    taken = "channels" if pad else "means taken off, channels"
    assert found.what == (
        f"{taken} mixed by a 6x6 matrix, shared with project_a, project_b, undone in expand_a, expand_b, last"
    )


def test_a_chain_is_what_convolutions_and_adds_make_and_read(captured: Capture) -> None:
    (chain,) = chains_of(captured(seeded(Mobile)))
    assert (len(chain.producers), len(chain.adds), len(chain.read), chain.padded, chain.channels) == (
        3,
        2,
        3,
        False,
        6,
    )
    assert [one.bits for one in chain.read] == [4, 4, 4]
    assert chains_of(captured(seeded(lambda: Mobile(pad=1))))[0].padded


class Direct(nn.Module):
    """A convolution that reads a chain and makes it: nothing lies between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.branch = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 1)
        self.last, self.head = nn.Conv2d(6, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.last(x + self.branch(x))).mean((2, 3)))


def test_a_layer_may_read_the_chain_that_it_makes(captured: Capture) -> None:
    result = captured(seeded(Direct))
    (chain,) = chains_of(result)
    assert [len(chain.producers), len(chain.adds), len(chain.read)] == [2, 1, 2]
    changed_bases(result)


def pooled(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 2)


def side_by_side(x: Tensor) -> Tensor:
    return torch.cat([x[:, :3], x[:, 3:]], 1)


def doubled(x: Tensor) -> Tensor:
    return x * 2.0


def raised(x: Tensor) -> Tensor:
    return x + torch.ones(6, 1, 1)


def framed(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (1, 1, 1, 1), value=1.0)


@pytest.mark.parametrize("after", [torch.relu, pooled, side_by_side, doubled, raised, framed])
def test_a_chain_with_any_other_reader_or_maker_keeps_its_basis(
    captured: Capture, after: Callable[[Tensor], Tensor]
) -> None:
    assert chains_of(captured(seeded(lambda: Mobile(after=after)))) == []


class Broadcast(nn.Module):
    """An add of one value a channel, and one of a depthwise layer's output: neither may take a basis, nor
    what meets them.
    """

    def __init__(self, *, depthwise: bool) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.last = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 6, 1),
        )
        self.depth, self.head, self.depthwise = (
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Linear(6, 5),
            depthwise,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        other = self.depth(x) if self.depthwise else self.b(x)[:, :, :1, :1]
        return self.head(torch.relu(self.last(self.a(x) + other)).mean((2, 3)))


@pytest.mark.parametrize("depthwise", [True, False])
def test_what_meets_another_tensor_at_an_add_keeps_its_basis(captured: Capture, depthwise: bool) -> None:
    assert chains_of(captured(seeded(lambda: Broadcast(depthwise=depthwise)))) == []


def test_codes_of_8_bits_need_no_other_basis(captured: Capture) -> None:
    assert changed_bases(captured(seeded(Mobile, uneven)), scheme="w4a8") == []


def test_where_nothing_is_won_the_weights_stay(captured: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixport.quantize.channels.bottlenecks._WORTH_IT", 0.0)
    result = captured(seeded(Mobile, uneven))
    before = result.graph.code
    assert changed_bases(result) == [] and result.graph.code == before


def test_values_that_are_no_numbers_leave_the_basis(captured: Capture) -> None:
    graph = captured(seeded(Mobile, uneven)).graph
    before, images = graph.code, torch.full((4, 3, 16, 16), torch.nan)
    assert change_bases(graph, [images], images=4, scheme=Scheme.parse("w4a4"), rule=_RULE) == []
    assert graph.code == before


def test_an_output_without_a_derivative_is_named(captured: Capture) -> None:
    result = captured(seeded(Mobile, uneven))
    output = next(node for node in result.graph.graph.nodes if node.op == "output")
    with result.graph.graph.inserting_before(output):
        detached = result.graph.graph.call_function(torch.ops.aten.detach.default, (output.args[0][0],))  # type: ignore[index]
    output.args = ((detached,),)
    result.graph.recompile()
    (found,) = changed_bases(result)
    assert found.what == "channels keep their own basis" and "do not depend" in found.why


def nodes_of(graph: fx.GraphModule) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    (chain,) = linear_chains(CodeFlow(graph), Scheme.parse("w4a4"))
    return chain.read[0].tensor, chain.read[0].layers


def test_moments_are_those_of_all_places_and_gradients_those_of_the_named_readers(captured: Capture) -> None:
    graph = captured(seeded(Mobile, uneven)).graph
    tensor, layers = nodes_of(graph)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    (together,) = channel_moments(graph, {tensor: layers}, [images], images=6, rows=50).values()
    with torch.no_grad():
        values = fx.Interpreter(graph)
        values.garbage_collect_values = False
        values.run(images)
        places = values.env[tensor].movedim(1, -1).reshape(-1, 6).double().numpy()
    np.testing.assert_allclose(together.mean, places.mean(0), rtol=1e-9)
    np.testing.assert_allclose(together.square, places.T @ places / len(places), rtol=1e-9)
    assert together.rows.shape == (50, 6)
    parts = channel_moments(graph, {tensor: layers}, torch.split(images, 2), images=6, rows=50)[tensor]
    np.testing.assert_allclose(parts.square, together.square, rtol=1e-9)
    assert parts.rows.shape == (51, 6)
    silent = channel_moments(graph, {tensor: ()}, [images], images=6, rows=50)[tensor]
    assert not silent.fisher.any() and together.fisher.any()


class Reading(nn.Module):
    """A softmax of what a 1x1 convolution reads: its Fisher information is known."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.stem(x)).flatten(1)


def test_fisher_information_is_that_of_the_softmax(captured: Capture) -> None:
    module = Reading()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    graph = captured(module, size=1).graph
    images = torch.randn(20000, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    nodes = [node for node in graph.graph.nodes if "conv2d" in str(node.target)]
    (found,) = channel_moments(
        graph, {nodes[0]: (nodes[1],)}, torch.split(images, 5000), images=len(images), rows=1
    ).values()
    with torch.no_grad():
        p = torch.softmax(graph(images), 1).double().numpy()
    weight = module.read.weight.detach().flatten(1).double().numpy()
    of_logits = np.diag(p.mean(0)) - p.T @ p / len(p)
    wanted = weight.T @ of_logits @ weight
    # 20,000 draws: an element is off by about 1 / sqrt(20000) of the largest
    np.testing.assert_allclose(found.fisher, wanted, atol=0.04 * np.abs(wanted).max())


def no_bases(*_: object, **__: object) -> list[Decision]:
    return []


@pytest.mark.parametrize("iters", [pytest.param(0, marks=pytest.mark.sweep), 20])
def test_the_file_is_exact_and_closer_to_the_float_model(
    iters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = seeded(Mobile, uneven)
    calibration, target = calibration_of(tmp_path, images=64), load_target("ort-cpu")
    images = np.random.default_rng(1).standard_normal((32, 3, 16, 16)).astype(np.float32)
    recipe = ReconstructionOptions(preset=PRESETS["mixport"], iters=iters) if iters else None

    def error(folder: Path) -> float:
        folder.mkdir()
        quantized = quantize(
            float_model(module),
            calibration,
            target,
            scheme=Scheme.parse("w6a4"),
            reconstruction=recipe,
            workdir=folder,
        )
        assert any("mixed by" in one.what for one in quantized.decisions) == (folder.name == "mixed")
        simulation = open_simulation(quantized)
        (folder / "file").mkdir()
        report = validate(
            lower(quantized, target, workdir=folder / "file"), images, target, simulation=simulation
        )
        assert report.verdict == "exact"
        with torch.no_grad():
            wanted: Tensor = module(torch.as_tensor(images))
        return float(
            (torch.as_tensor(simulation.simulate(images, overrides={}).codes["output"]) - wanted)
            .square()
            .mean()
            / wanted.var()
        )

    # Powers of two level these channels too (test_uneven_channels), from 0 dB to 40: here bases are to do it
    # alone.
    monkeypatch.setattr("mixport.quantize.prepare.level_uneven", no_bases)
    mixed = error(tmp_path / "mixed")
    monkeypatch.setattr("mixport.quantize.prepare.change_bases", no_bases)
    assert mixed < 0.7 * error(tmp_path / "as it was")
