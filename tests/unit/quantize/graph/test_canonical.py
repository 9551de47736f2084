from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.quantize.conftest import Capture, operators


def shaken(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Batch norm whose every statistic matters, with gains of both signs."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
        norm.weight[0] = -1.5
        norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator))
        norm.running_mean.copy_(torch.randn(norm.bias.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.bias.shape, generator=generator) + 0.2)
    return norm


def test_batchnorm_folds_into_the_convolution_before_it(captured: Capture) -> None:
    result = captured(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), shaken(nn.BatchNorm2d(8)), nn.ReLU()))
    assert operators(result.graph) == {"conv2d": 1, "relu": 1}
    assert not result.decisions


def test_batchnorm_alone_becomes_a_depthwise_convolution_and_says_so(captured: Capture) -> None:
    result = captured(nn.Sequential(shaken(nn.BatchNorm2d(3)), nn.ReLU(), nn.Conv2d(3, 4, 3)))
    assert operators(result.graph) == {"conv2d": 2, "relu": 1}
    assert [d.what for d in result.decisions] == ["BatchNorm as a 1x1 depthwise convolution"]


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), shaken(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_batchnorm_is_not_folded_where_the_convolution_has_another_reader(captured: Capture) -> None:
    result = captured(SharedConvolution())
    assert operators(result.graph)["conv2d"] == 2


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.AvgPool2d(2), {"conv2d": 2}),
        (nn.AvgPool2d(3, 1, 1), {"conv2d": 2}),
        (nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), {"conv2d": 2}),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), {"conv2d": 10, "slice": 12, "cat": 4}),
        (nn.AvgPool2d(5, ceil_mode=True), {"conv2d": 5, "slice": 8, "cat": 3}),
        (nn.AdaptiveAvgPool2d(1), {"conv2d": 1, "global_average_pool": 1}),
    ],
    ids=["plain", "padded", "ceil without partial window", "border excluded", "cut windows", "global"],
)
def test_average_pools(captured: Capture, pool: nn.Module, expected: dict[str, int]) -> None:
    assert operators(captured(Pooled(pool)).graph) == expected


class Mean(nn.Module):
    def __init__(
        self, dims: tuple[int, ...], *, keepdim: bool, order: tuple[int, ...] | None, tokens: bool
    ) -> None:
        super().__init__()
        self.dims, self.keepdim, self.order, self.tokens = dims, keepdim, order, tokens

    def forward(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = x.permute(self.order)
        if self.tokens:
            x = x.flatten(1, 2)
        return x.mean(self.dims, keepdim=self.keepdim)


@pytest.mark.parametrize("keepdim", [False, True], ids=["drop", "keep"])
@pytest.mark.parametrize(
    ("dims", "order", "tokens"),
    [
        ((2, 3), None, False),
        ((-1, -2), None, False),
        ((1, 2), (0, 2, 3, 1), False),
        ((1,), (0, 2, 3, 1), True),
    ],
    ids=["nchw", "negative", "nhwc", "tokens"],
)
def test_means_over_space_become_global_average_pools(
    captured: Capture, dims: tuple[int, ...], order: tuple[int, ...] | None, *, tokens: bool, keepdim: bool
) -> None:
    counts = operators(captured(Mean(dims, keepdim=keepdim, order=order, tokens=tokens)).graph)
    assert counts["global_average_pool"] == 1
    assert counts["mean"] == 0


class Attention(nn.Module):
    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 24)
        self.mask = nn.Parameter(torch.randn(1, 2, 256, 256)) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(-1, 256, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).flatten(1)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_written_out(captured: Capture, *, masked: bool) -> None:
    counts = operators(captured(Attention(masked=masked)).graph)
    assert counts["matmul"] == 2
    assert counts["softmax"] == 1
    assert counts["scaled_dot_product_attention"] == 0


class LayerScale(nn.Module):
    def __init__(self, *, permuted: bool) -> None:
        super().__init__()
        self.linear, self.permuted = nn.Linear(3, 5), permuted
        self.gamma = nn.Parameter(torch.tensor([0.1, -2.0, 3.0, 0.5, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.permute(0, 2, 3, 1))
        if self.permuted:
            return y.permute(0, 3, 1, 2) * self.gamma.reshape(1, -1, 1, 1)
        return y * self.gamma


@pytest.mark.parametrize("permuted", [False, True])
def test_layerscale_folds_into_the_linear_layer(captured: Capture, *, permuted: bool) -> None:
    assert operators(captured(LayerScale(permuted=permuted)).graph)["mul"] == 0


def test_linear_layers_on_tokens_become_two_dimensional(captured: Capture) -> None:
    result = captured(LayerScale(permuted=False))
    (linear,) = [n for n in result.graph.graph.nodes if str(n.target) == "aten.linear.default"]
    assert len(linear.args[0].meta["shape"]) == 2


def test_same_padding_is_written_out(captured: Capture) -> None:
    result = captured(nn.Conv2d(3, 4, 4, padding="same"))
    assert operators(result.graph) == {"constant_pad_nd": 1, "conv2d": 1}


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(1, 4, 14, 14)


def test_a_model_that_fixes_its_batch_is_captured_at_one_and_says_so() -> None:
    from mixport.quantize.graph.capture import capture

    result = capture(FixedBatch().eval(), input_shape=(1, 3, 16, 16), dynamic_batch=True)
    assert not result.dynamic_batch
    assert result.decisions[0].what == "batch fixed at 1"
