"""Convolutions of few input channels: the same sums in a form that kernels take directly, and only where that
pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from mixport.arithmetic.neighbour_pairs import pair_violations
from mixport.arithmetic.torch_ops import OPS
from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.kernel_forms.few_channels import widen_few_channels
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import Target, load_target
from mixport.validate.interpreter.interpreter import Interpreter


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution of an image, whose border is padded by zeros in an operator of its own where `pads` is
    given.
    """

    channels: int = 3
    outputs: int = 16
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int] = (16, 16)
    pads: tuple[int, int, int, int] | None = None

    def graph(self) -> tuple[fx.GraphModule, Tensor]:
        """The graph, and an image of small integers: sums are exact in every order."""
        generator = torch.Generator().manual_seed(3)
        graph, root = fx.Graph(), nn.Module()
        shape = (self.outputs, self.channels // self.groups, *self.kernel)
        root.register_buffer("weight", torch.randint(-9, 10, shape, generator=generator).float())
        root.register_buffer("bias", torch.randint(-99, 99, (self.outputs,), generator=generator).float())
        x = graph.placeholder("x")
        padded = (
            x
            if self.pads is None
            else graph.call_function(aten.constant_pad_nd.default, (x, list(self.pads), 0.0))
        )
        numbers = (list(self.stride), list(self.padding), list(self.dilation), self.groups)
        operands = (padded, graph.get_attr("weight"), graph.get_attr("bias"))
        graph.output(graph.call_function(aten.conv2d.default, (*operands, *numbers)))
        module = fx.GraphModule(root, graph)
        image = torch.randint(-9, 10, (2, self.channels, *self.size), generator=generator).float()
        record_shapes(module, image)
        return module, image


def rewritten(conv: Conv, target: Target | None = None) -> tuple[fx.GraphModule, list[str]]:
    """The graph after the rewrite, which changes no value, and what was said of it."""
    module, image = conv.graph()
    wanted = module(image)
    said = [decision.what for decision in widen_few_channels(module, target or load_target("ort-cpu"))]
    clean(module)
    assert torch.equal(module(image), wanted)
    return module, said


def the(module: fx.GraphModule, operator: object) -> fx.Node:
    return next(node for node in module.graph.nodes if node.target is operator)


def weight_shape(module: fx.GraphModule) -> tuple[int, ...]:
    name = str(the(module, aten.conv2d.default).args[1])
    return tuple(dict(module.named_buffers())[name].shape)


@pytest.mark.parametrize(
    ("conv", "shape", "padding"),
    [
        (
            Conv(stride=(2, 2), padding=(1, 1)),
            (16, 12, 2, 2),
            [1, 0, 1, 0],
        ),  # left, right, top, bottom, in blocks
        (Conv(stride=(2, 2), kernel=(7, 7), padding=(3, 3)), (16, 12, 4, 4), [2, 1, 2, 1]),
        (Conv(stride=(2, 2), kernel=(5, 5), padding=(2, 2)), (16, 12, 3, 3), [1, 1, 1, 1]),
        (Conv(stride=(2, 2), pads=(0, 1, 0, 1)), (16, 12, 2, 2), [0, 1, 0, 1]),  # TensorFlow's SAME
        (Conv(stride=(2, 2), padding=(1, 0), pads=(1, 0, 0, 0)), (16, 12, 2, 2), [1, 0, 1, 0]),
        (Conv(stride=(4, 4), kernel=(4, 4)), (16, 48, 1, 1), [0, 0, 0, 0]),
        (Conv(stride=(4, 4), kernel=(7, 7), padding=(3, 3)), (16, 48, 2, 2), [1, 0, 1, 0]),
        (Conv(stride=(2, 2), kernel=(2, 2), channels=1), (16, 4, 1, 1), [0, 0, 0, 0]),
    ],
)
def test_pixels_of_a_stride_become_channels(conv: Conv, shape: tuple[int, ...], padding: list[int]) -> None:
    module, said = rewritten(conv)
    convolution = the(module, aten.conv2d.default)
    assert weight_shape(module) == shape
    assert convolution.args[3] == [1, 1]
    assert the(module, OPS.space_to_depth.default).args[1] == conv.stride[0]
    pads = [node for node in module.graph.nodes if node.target is aten.constant_pad_nd.default]
    left, right, top, bottom = padding
    if (left, top) == (right, bottom):
        assert not pads
        assert convolution.args[4] == [top, left]
    else:
        assert [node.args[1] for node in pads] == [padding]
        assert convolution.args[4] == [0, 0]
    assert len(said) == 1


@pytest.mark.parametrize(
    "conv",
    [
        Conv(padding=(1, 1)),
        Conv(stride=(2, 2), padding=(1, 1), size=(15, 16)),  # no whole blocks
        Conv(stride=(2, 1), padding=(1, 1)),
        Conv(stride=(2, 2), dilation=(2, 2)),
        Conv(stride=(2, 2), kernel=(4, 4), padding=(1, 1)),  # 6 x 6 pixels of blocks for 4 x 4
        Conv(stride=(3, 3), size=(15, 15)),  # 27 channels are no multiple either
        Conv(kernel=(1, 7), pads=(3, 3, 0, 0)),
        Conv(channels=1, kernel=(5, 5)),
        Conv(channels=2),
    ],
)
def test_else_channels_of_zeros_are_added(conv: Conv) -> None:
    module, said = rewritten(conv)
    assert weight_shape(module) == (16, 4, *conv.kernel)
    assert the(module, aten.conv2d.default).args[3] == list(conv.stride)
    filled = next(node for node in module.graph.nodes if node.target is aten.constant_pad_nd.default)
    assert filled.args[1] == [0, 0, 0, 0, 0, 4 - conv.channels]
    assert len(said) == 1


@pytest.mark.parametrize(
    "conv",
    [
        Conv(channels=4, stride=(2, 2)),
        Conv(outputs=15),  # kernels for 16 outputs and more
        Conv(channels=2, outputs=16, groups=2),
        Conv(stride=(8, 8), kernel=(8, 8)),  # rows of patches are long enough to copy
        Conv(
            stride=(4, 4), kernel=(7, 7), padding=(2, 2)
        ),  # 12 x 12 pixels of blocks for 7 x 7, and strides too wide for zeros
    ],
)
def test_what_gains_nothing_stays(conv: Conv) -> None:
    module, said = rewritten(conv)
    assert said == []
    assert weight_shape(module) == (conv.outputs, conv.channels // conv.groups, *conv.kernel)


def test_a_target_says_whether_its_kernels_ask_for_it() -> None:
    stem, ort = Conv(stride=(2, 2), padding=(1, 1)), load_target("ort-cpu")
    assert rewritten(stem, load_target("onnx-int8"))[1] == []
    without = ort.operators.model_copy(
        update={"integer": tuple(op for op in ort.operators.integer if op != "SpaceToDepth")}
    )
    module, said = rewritten(stem, ort.model_copy(update={"operators": without}))
    assert weight_shape(module) == (16, 4, 3, 3)
    neither = without.model_copy(update={"integer": ("Conv",)})
    assert len(said) == 1
    assert rewritten(stem, ort.model_copy(update={"operators": neither}))[1] == []


@settings(max_examples=80, deadline=None)
@given(data=st.data(), channels=st.integers(1, 3), step=st.sampled_from([1, 2, 2, 4]))
def test_the_same_sums(data: st.DataObject, channels: int, step: int) -> None:
    def draw(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    kernel, padding, (rows, columns) = draw(1, 7), draw(0, 3), draw(1, 5)
    left, top = draw(0, 3)
    size = (rows * step, columns * step)
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    rewritten(
        Conv(
            channels=channels,
            kernel=kernel,
            padding=padding,
            stride=(step, step),
            size=size,
            pads=(left, 0, top, 1),
        )
    )


def test_two_readers_share_the_rearranged_image() -> None:
    module, image = Conv(stride=(2, 2), padding=(1, 1)).graph()
    first = the(module, aten.conv2d.default)
    with module.graph.inserting_after(first):
        second = module.graph.call_function(aten.conv2d.default, (*first.args[:3], [2, 2], [0, 0], [1, 1], 1))
    the_output = next(node for node in module.graph.nodes if node.op == "output")
    the_output.args = ((first, second),)
    module.recompile()
    wanted = module(image)
    record_shapes(module, image)
    assert len(widen_few_channels(module, load_target("ort-cpu"))) == 2
    clean(module)
    assert all(torch.equal(got, kept) for got, kept in zip(module(image), wanted, strict=True))
    assert [node.target for node in module.graph.nodes].count(OPS.space_to_depth.default) == 1


def test_space_to_depth_has_the_order_of_onnx_and_gives_gradients_back() -> None:
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4).requires_grad_()
    y = OPS.space_to_depth(x, 2)
    # Of the first block: pixel (0, 0) of both channels, then (0, 1), (1, 0), (1, 1).
    assert y[0, :, 0, 0].tolist() == [0, 16, 1, 17, 4, 20, 5, 21]
    assert y.shape == (1, 8, 2, 2)
    weights = torch.arange(32.0).reshape(1, 8, 2, 2)
    (y * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(OPS.space_to_depth(x.grad, 2), weights)


class Stem(nn.Module):
    """Neighbours that saturate only in the order of the rearranged kernel: columns 1 and 2 of one channel,
    four channels apart.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution = nn.Conv2d(1, 16, 3, stride=stride, padding=1)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.randn(16, 1, 3, 3, generator=generator) * 0.1)
            self.convolution.weight[:, 0, 1, 1:] = 1.0
            self.head.weight.copy_(torch.randn(5, 16, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.convolution(x[:, :1])).mean((2, 3)))


def stem_of_stride_1() -> nn.Module:
    """Its convolution takes channels of zeros."""
    return _with_config(Stem(1))


def stem_of_stride_2() -> nn.Module:
    """Its convolution takes pixels as channels."""
    return _with_config(Stem(2))


def _with_config(model: nn.Module) -> nn.Module:
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("factory", "operator"), [("stem_of_stride_1", "Pad"), ("stem_of_stride_2", "SpaceToDepth")]
)
@pytest.mark.parametrize("scheme", ["w8a8", "w2a4"])
def test_in_the_file_it_moves_codes_and_no_neighbours_saturate(
    tmp_path: Path, factory: str, operator: str, scheme: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    calibration = CalibrationSet(
        images_path=tmp_path / "images.npy", count=8, method="images", recipe_key="", content_sha256=""
    )
    target, model = load_target("ort-cpu"), load_model(f"{__name__}:{factory}")
    # Convention vit: the first layer's weights are as narrow as any other's.
    parsed = Scheme(weight_bits=int(scheme[1]), activation_bits=int(scheme[3]), edge_convention="vit")
    quantized = quantize(model, calibration, target, scheme=parsed, workdir=tmp_path)
    assert any(
        "convolution" in decision.where and "channels" in decision.what for decision in quantized.decisions
    )
    lowered = lower(quantized, target, workdir=tmp_path)
    operators = [node.op_type for node in onnx.load(str(lowered.model_path)).graph.node]  # pyright: ignore[reportUnknownMemberType]
    assert operators.count(operator) == 1
    interpreter = Interpreter(lowered.model_path)
    (unit,) = [unit for unit in interpreter.units if unit.node.op == "Conv"]
    assert unit.weight is not None
    assert unit.weight.shape == ((16, 4, 3, 3) if operator == "Pad" else (16, 4, 2, 2))
    assert not pair_violations(unit.weight, largest_code=255, limit=32767).any()
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32) * 3
    wanted = interpreter.run(x).codes
    codes = open_simulation(quantized).simulate(x, overrides={}).codes
    for site in lowered.sites:
        assert np.array_equal(wanted[site], codes[site]), site
