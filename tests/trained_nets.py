"""A small residual network as training sees it: prepared, calibrated, and as a network with parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from mixport.model.float_model import FloatModel
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Assignment, Prepared
from mixport.quantize.sites.site_plan import SitePlan
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.progress import SilentProgress
from mixport.records.targets import Target, load_target
from mixport.train.network.quantised import QuantisedNetwork
from mixport.train.nipq.network import NoisyNetwork
from mixport.train.nipq.noise import NoiseKind
from tests.reconstruction import calibration_of, float_model, seeded

CPU = torch.device("cpu")
WIDTHS = range(2, 9)
LAYERS = ("stem", "body", "narrow", "wide", "deep", "head")
FREE = ("stem.a4", "body", "add.a4", "wide")
"""Sites of `residual` that the layers between the first and the last one read."""


class Residual(nn.Module):
    """Two convolutions beside a shortcut, two behind it without a Relu between them, the mean, a linear head;
    one inner layer has no bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, 12, 3, padding=1)
        self.narrow = nn.Conv2d(12, 8, 1, bias=False)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, groups=2)
        self.deep = nn.Conv2d(16, 8, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.narrow(torch.relu(self.body(x))))
        return self.head(self.pool(torch.relu(self.deep(self.wide(x)))).flatten(1))


def residual() -> nn.Module:
    """Residual with seeded weights."""
    return seeded(Residual)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Everything before training.

    Attributes:
        model: float model.
        prepared: its graph and sites.
        batches: calibration images.
        start: rounded to nearest.
    """

    model: FloatModel
    prepared: Prepared
    batches: CalibrationBatches
    start: Assignment

    @property
    def images(self) -> Tensor:
        """All calibration images, preprocessed."""
        return torch.cat(list(self.batches.of(self.batches.all())))

    def quantised(self, *, integers: Mapping[fx.Node, LayerIntegers] | None = None) -> QuantisedNetwork:
        """The network of real quantisers."""
        return QuantisedNetwork(self.prepared, self.start.params, integers or self.start.integers, device=CPU)

    def noisy(
        self,
        *,
        activation_bits: Sequence[float] = (4.0,) * 4,
        weight_bits: Sequence[float] = (4.0,) * 6,
        noise: NoiseKind = "histogram",
        learn: tuple[bool, bool] = (True, True),
    ) -> NoisyNetwork:
        """The network of noise."""
        return NoisyNetwork(
            self.prepared,
            self.start.params,
            self.start.integers,
            activation_bits=activation_bits,
            weight_bits=weight_bits,
            allowed=(WIDTHS, WIDTHS),
            noise=noise,
            learn=learn,
            device=CPU,
        )


def given_of(
    folder: Path,
    *,
    module: nn.Module | None = None,
    scheme: str = "w4a4",
    target: str | Target = "ort-cpu",
    table: WidthTable | None = None,
) -> Given:
    """A module prepared as training prepares it, `residual` where none is given; images go to the folder."""
    calibration: CalibrationSet = calibration_of(folder)
    model = float_model(residual() if module is None else module)
    prepared = prepare(
        model,
        calibration,
        load_target(target) if isinstance(target, str) else target,
        scheme=Scheme.parse(scheme, edge_convention="qdrop"),
        learned=True,
        level=False,
        table=table,
    )
    batches = CalibrationBatches(model=model, calibration=calibration)
    context = ChoiceContext(batches=batches, learner=None, progress=SilentProgress())
    return Given(model=model, prepared=prepared, batches=batches, start=choose_nearest(prepared, context))


def site_of(prepared: Prepared, name: str) -> SitePlan:
    """The site of a name."""
    (found,) = [site for site in prepared.plan.sites if site.name == name]
    return found


def with_target(given: Given, way: str) -> Given:
    """The same prepared again for a target whose scales are powers of two, or one a weight."""
    target = given.prepared.target
    if way == "power-of-two":
        target = target.model_copy(update={"scale": target.scale.model_copy(update={"form": "power-of-two"})})
    else:
        rules = target.weights.model_copy(update={"granularity": "per-tensor"})
        target = target.model_copy(update={"weights": rules})
    return given_of(given.batches.calibration.images_path.parent, target=target)


def moved(network: QuantisedNetwork, *, seed: int = 1) -> QuantisedNetwork:
    """The network with every parameter that may move at other values, in place, as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.layers.weight:
            weight.mul_(1.0 + 0.3 * torch.randn(weight.shape, generator=generator))
        for bias in network.layers.bias:
            bias.add_(0.1 * torch.randn(bias.shape, generator=generator))
        for value in (*network.scale, *network.step):
            if value.requires_grad:
                value.mul_(0.9 + 0.2 * torch.rand(value.shape, generator=generator))
    return network


def near(got: Tensor, wanted: Tensor) -> None:
    """Assert that outputs of two ways to sum are the same.

    Float sums differ by a few units in the last place. Where one of them lies right between two codes, a code
    of one image moves by one step, and that image's outputs with it, by a few in a hundred: allowed in one
    image of four.
    """
    largest = float(wanted.abs().max())
    off = (got.detach() - wanted.detach()).abs() / largest
    assert float(off.max()) < 0.05
    assert float((off < 1e-5).float().mean()) >= 0.75
