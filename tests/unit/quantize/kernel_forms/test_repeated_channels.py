"""Depthwise convolutions with several outputs a channel: the same sums from repeated channels, in the same
order.
"""

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
from mixport.quantize.kernel_forms.repeated_channels import repeat_channels
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target
from mixport.validate.interpreter.interpreter import Interpreter


def convolution(
    *,
    outputs: int,
    groups: int,
    rank: int = 2,
    channels: int = 6,
    pads: tuple[int, ...] = (),
    stride: int = 1,
) -> tuple[fx.GraphModule, Tensor]:
    """A convolution of small integers, whose sums are exact in every order, and what it reads."""
    generator = torch.Generator().manual_seed(1)
    graph, root = fx.Graph(), nn.Module()
    root.register_buffer(
        "weight",
        torch.randint(-9, 10, (outputs, channels // groups, *[3] * rank), generator=generator).float(),
    )
    root.register_buffer("bias", torch.randint(-99, 99, (outputs,), generator=generator).float())
    x = graph.placeholder("x")
    read = graph.call_function(aten.constant_pad_nd.default, (x, list(pads), 0.0)) if pads else x
    operands = (
        read,
        graph.get_attr("weight"),
        graph.get_attr("bias"),
        [stride] * rank,
        [1] * rank,
        [1] * rank,
        groups,
    )
    graph.output(graph.call_function({1: aten.conv1d.default, 2: aten.conv2d.default}[rank], operands))
    module = fx.GraphModule(root, graph)
    image = torch.randint(-9, 10, (2, channels, *[8] * rank), generator=generator).float()
    record_shapes(module, image)
    return module, image


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("outputs", "stride"), [(12, 1), (18, 2)])
@pytest.mark.parametrize("padded", [False, True])
def test_each_output_reads_the_channel_of_its_group(
    rank: int, outputs: int, stride: int, padded: bool
) -> None:
    module, image = convolution(
        outputs=outputs, groups=6, rank=rank, stride=stride, pads=(0, 1) if padded else ()
    )
    wanted = module(image)
    (decision,) = repeat_channels(module, load_target("ort-cpu"))
    clean(module)
    assert torch.equal(module(image), wanted)
    *_, last, _ = module.graph.nodes
    assert last.args[-1] == outputs
    assert f"of {outputs}" in decision.what
    before = [node.target for node in module.graph.nodes if node.op == "call_function"][:-1]
    # A pad stays next to the convolution, which takes it as its own.
    assert before == [aten.index_select.default, *([aten.constant_pad_nd.default] if padded else [])]


@pytest.mark.parametrize(("outputs", "groups"), [(6, 6), (12, 1), (12, 3)])
def test_other_convolutions_stay(outputs: int, groups: int) -> None:
    module, _ = convolution(outputs=outputs, groups=groups)
    assert repeat_channels(module, load_target("ort-cpu")) == []


def test_a_target_says_whether_it_has_kernels() -> None:
    module, _ = convolution(outputs=12, groups=6)
    assert repeat_channels(module, load_target("onnx-int8")) == []


class Multiplied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(torch.relu(self.stem(x)))).mean((2, 3)))


def multiplied() -> nn.Module:
    """Two outputs for each of eight channels."""
    model, generator = Multiplied(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # type: ignore[assignment]
    return model


def test_in_the_file_codes_are_repeated(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    calibration = CalibrationSet(
        images_path=tmp_path / "images.npy", count=8, method="images", recipe_key="", content_sha256=""
    )
    target = load_target("ort-cpu")
    quantized = quantize(
        load_model(f"{__name__}:multiplied"),
        calibration,
        target,
        scheme=Scheme.parse("w4a4"),
        workdir=tmp_path,
    )
    lowered = lower(quantized, target, workdir=tmp_path)
    model = onnx.load(str(lowered.model_path))  # pyright: ignore[reportUnknownMemberType]
    assert [node.op_type for node in model.graph.node].count("Gather") == 1
    interpreter = Interpreter(lowered.model_path)
    groups = [unit.node.attributes.get("group", 1) for unit in interpreter.units if unit.node.op == "Conv"]
    assert groups == [1, 16]
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    wanted, codes = interpreter.run(x).codes, open_simulation(quantized).simulate(x, overrides={}).codes
    for site in lowered.sites:
        assert np.array_equal(wanted[site], codes[site]), site
