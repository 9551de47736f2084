"""Small models that tests quantise: every structure once, seconds to build."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONFIG = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(self.pool(x)))))
        return x * gate


class TinyNet(nn.Module):
    """Convolution with batch norm, residual add, max pool, depthwise convolution, gate by multiplication,
    linear head.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.pool = nn.MaxPool2d(2)
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.gate = SqueezeExcite(8)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.branch(x))
        x = self.gate(self.depthwise(self.pool(x)))
        return self.head(self.average(x).flatten(1))


def tiny(classes: int = 10) -> nn.Module:
    """TinyNet with seeded weights, and batch norms that change something, a negative gain among them."""
    generator = torch.Generator().manual_seed(1)
    model = TinyNet(classes)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.weight[0] *= -1
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return _configured(model)


def with_nan() -> nn.Module:
    """TinyNet with one weight that is not a number."""
    model = tiny()
    with torch.no_grad():
        model.stem[0].weight[0, 0, 0, 0] = float("nan")
    return model


class Branching(nn.Module):
    """Control flow that depends on values: it cannot be captured as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        return self.head(pooled if x.sum() > 0 else -pooled)


class Spectral(nn.Module):
    """An operator that is in no convolutional network, and that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.linalg.svdvals(self.conv(x)).mean(-1))


def branching() -> nn.Module:
    """See Branching."""
    return _configured(Branching())


def spectral() -> nn.Module:
    """See Spectral."""
    return _configured(Spectral())


def not_a_module() -> object:
    """A factory that is wrong."""
    return {"weights": 3}


def _configured(model: nn.Module) -> nn.Module:
    model.pretrained_cfg = _CONFIG  # where a factory states the preprocessing, as timm does
    return model.eval()


class Transformer(nn.Module):
    """Patches, attention, a merge (linear straight into a normalisation), a second block, the mean of the
    tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 16, 12) * 0.1)
        self.norm1, self.qkv, self.proj = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm2, self.merge, self.norm3 = (
            nn.LayerNorm(12),
            nn.Linear(12, 20, bias=False),
            nn.LayerNorm(20, bias=False),
        )
        self.fc1, self.fc2, self.head = nn.Linear(20, 28), nn.Linear(28, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        q, k, v = self.qkv(self.norm1(x)).reshape(-1, 16, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, 12))
        x = self.norm3(self.merge(self.norm2(x)))
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.head(x.mean(1))


def transformer() -> nn.Module:
    """Transformer with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return _configured(Transformer())


class Named(nn.Module):
    """A chain of residual convolutions under the given names, each inside the module that has the next name;
    then a linear layer.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.stem, self.head, self.ways = nn.Conv2d(3, 4, 1), nn.Linear(4, 3), []
        for outer, inner in zip(names, [*names[1:], names[0]], strict=True):
            box = nn.Module()
            box.add_module(inner, nn.Conv2d(4, 4, 1))
            self.add_module(outer, box)
            self.ways.append((outer, inner))

    def forward(self, input: Tensor) -> Tensor:
        x = self.stem(input)
        for outer, inner in self.ways:
            x = x + torch.sigmoid(self._modules[outer]._modules[inner](x))
        return self.head(x.mean((2, 3)))


def named(names: list[str]) -> nn.Module:
    """Named with seeded weights, for names that differ."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return _configured(Named(names))


class Repeated(nn.Module):
    """One residual block, called several times, and a second one whose weights are the first one's under
    other names.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.stem, self.head, self.calls = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5), calls
        self.wide, self.narrow = nn.Conv2d(16, 64, 1), nn.Conv2d(64, 16, 1)
        self.other = nn.Conv2d(16, 64, 1)
        self.other.weight = self.wide.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.calls):
            x = x + self.narrow(torch.relu(self.wide(x)))
        x = x + self.narrow(torch.relu(self.other(x)))
        return self.head(x.mean((2, 3)))


def repeated(calls: int = 3) -> nn.Module:
    """Repeated with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return _configured(Repeated(calls))
