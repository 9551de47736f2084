"""Gates of few channels: copied to every position, on large maps alone, and the same products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.kernel_forms.spread_gates import spread_gates
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target
from mixport.validate.interpreter.interpreter import Interpreter


def product(
    channels: int, size: int, *, gate_first: bool, gate: tuple[int, int] = (1, 1)
) -> tuple[fx.GraphModule, Tensor]:
    """A map times the means of its rows and columns, of both or of none."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    means = graph.call_function(aten.adaptive_avg_pool2d.default, (x, list(gate)))
    graph.output(graph.call_function(aten.mul.Tensor, (means, x) if gate_first else (x, means)))
    module = fx.GraphModule(nn.Module(), graph)
    image = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    record_shapes(module, image)
    return module, image


@pytest.mark.parametrize("gate_first", [False, True])
def test_the_gate_has_the_shape_of_what_it_multiplies(gate_first: bool) -> None:
    module, image = product(47, 28, gate_first=gate_first)
    wanted = module(image)
    (decision,) = spread_gates(module, load_target("ort-cpu"))
    clean(module)
    assert torch.equal(module(image), wanted)
    spread, multiplied = list(module.graph.nodes)[-3:-1]
    assert spread.target is aten.expand.default
    assert spread.args[1] == [-1, 47, 28, 28]
    assert multiplied.args.index(spread) == (0 if gate_first else 1)
    assert decision.what == "gate of 47 channels copied to 28 x 28 positions"


@pytest.mark.parametrize(
    ("channels", "size", "gate"), [(48, 28, (1, 1)), (16, 27, (1, 1)), (16, 28, (1, 28)), (16, 28, (28, 28))]
)
def test_what_gains_nothing_stays(channels: int, size: int, gate: tuple[int, int]) -> None:
    module, _ = product(channels, size, gate_first=False, gate=gate)
    assert spread_gates(module, load_target("ort-cpu")) == []


def test_a_target_says_whether_it_pays() -> None:
    module, _ = product(16, 28, gate_first=False)
    assert spread_gates(module, load_target("onnx-int8")) == []


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


def gated() -> nn.Module:
    """A gate of eight channels on 32 x 32 positions."""
    model, generator = Gated(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # type: ignore[assignment]
    return model


def test_in_the_file_codes_are_copied_and_the_product_stays_integer(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    calibration = CalibrationSet(
        images_path=tmp_path / "images.npy", count=8, method="images", recipe_key="", content_sha256=""
    )
    target = load_target("ort-cpu")
    quantized = quantize(
        load_model(f"{__name__}:gated"), calibration, target, scheme=Scheme.parse("w8a8"), workdir=tmp_path
    )
    lowered = lower(quantized, target, workdir=tmp_path)
    model = onnx.load(str(lowered.model_path))  # pyright: ignore[reportUnknownMemberType]
    assert [node.op_type for node in model.graph.node].count("Expand") == 1
    interpreter = Interpreter(lowered.model_path)
    assert [unit.kind for unit in interpreter.units].count("multiply") == 1
    assert not interpreter.island_names
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    wanted, codes = interpreter.run(x).codes, open_simulation(quantized).simulate(x, overrides={}).codes
    for site in lowered.sites:
        assert np.array_equal(wanted[site], codes[site]), site
