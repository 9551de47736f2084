"""Small random classifiers out of many kinds of operators: what hypothesis draws, built as a module."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]
MOST_CHANNELS, MOST_SIDE = 24, 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a module is made of: sides of its image, the steps by name with a seed for each one's numbers, and
    its head.
    """

    height: int
    width: int
    steps: tuple[tuple[str, int], ...]
    head: str


class RandomModule(nn.Module):
    """Stem, the steps that fit, a head for ten classes. Weights keep the variance of what they read."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "input_size": (3, recipe.height, recipe.width),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
        }
        with torch.random.fork_rng():
            torch.manual_seed(17)
            self.parts = nn.ModuleList()
            self.taken: list[str] = []
            self.steps: list[Step] = []
            x = torch.randn(2, 3, recipe.height, recipe.width)
            x = self._add("stem", lambda m, y, _: m.conv(y, 8, 3, padding=1), x, random.Random(0))
            for name, seed in recipe.steps:
                x = self._add(name, STEPS[name], x, random.Random(seed))
            self.head_name = recipe.head
            self.head = nn.Linear(x.shape[1] if recipe.head == "mean" else x[0].numel(), 10)
            if recipe.head == "convolution":
                self.head = nn.Conv2d(x.shape[1], 10, 1)

    def _add(self, name: str, build: Build, x: Tensor, rng: random.Random) -> Tensor:
        """Append a step, where it works on x and gives a map that is neither empty nor large."""
        kept = len(self.parts)
        try:
            step = build(self, x, rng)
            with torch.no_grad():
                y = step(x)
            fits = (
                y.dim() == 4
                and 0 < y.shape[1] <= MOST_CHANNELS
                and all(0 < side <= MOST_SIDE for side in y.shape[2:])
            )
            fits = (
                fits
                and y.dtype is torch.float32
                and bool(y.isfinite().all())
                and float(y.std()) > 1e-3
                and float(y.abs().max()) < 1e3
            )
        except (RuntimeError, ValueError, AssertionError):
            fits = False
        if not fits:
            del self.parts[kept:]
            return x
        self.taken.append(name)
        self.steps.append(step)
        return y

    def varies(self) -> bool:
        """True where outputs depend on the image: constant ones have no signal that noise could be compared
        with.
        """
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(3)
            config = self.pretrained_cfg["input_size"]
            outputs = self(torch.randn(8, *config))
        return float(outputs.std(0).mean()) > 0.03 * float(outputs.abs().mean())

    def part(self, module: nn.Module) -> nn.Module:
        """Register a submodule with weights that keep the variance."""
        for value in module.parameters():
            if value.dim() > 1:
                nn.init.normal_(value, std=(1.5 / value[0].numel()) ** 0.5)
        self.parts.append(module.eval())
        return module

    def conv(self, x: Tensor, channels: int, kernel: int, **options: int) -> Step:
        """A convolution of x."""
        return self.part(nn.Conv2d(x.shape[1], channels, kernel, **options))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self._classify(x)

    def _classify(self, x: Tensor) -> Tensor:
        if self.head_name == "convolution":
            return F.adaptive_avg_pool2d(self.head(x), 1).flatten(1)
        return self.head(x.mean((2, 3)) if self.head_name == "mean" else x.flatten(1))


Build = Callable[[RandomModule, Tensor, random.Random], Step]


def _convolution(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    channels, kernel = x.shape[1], rng.choice([1, 2, 3])
    groups = rng.choice([1, 1, 2, channels])
    options = {
        "stride": rng.choice([1, 1, 2]),
        "padding": rng.randint(0, kernel // 2),
        "dilation": rng.choice([1, 1, 2]),
        "groups": groups,
    }
    return m.part(
        nn.Conv2d(
            channels, rng.choice([channels, 2 * channels, 8]), kernel, bias=rng.random() < 0.7, **options
        )
    )


def _norm(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    channels = x.shape[1]
    norm = rng.choice(
        [nn.BatchNorm2d(channels), nn.GroupNorm(1, channels), nn.InstanceNorm2d(channels, affine=True)]
    )
    m.parts.append(norm.eval())
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(norm.weight, mean=1.0, std=0.5)
    return norm


def _layer_norm(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    norm = m.part(nn.LayerNorm(x.shape[1]))
    return lambda y: norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _activation(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    return rng.choice(
        [
            F.relu, F.relu6, F.gelu, F.silu, F.hardswish, torch.sigmoid, F.leaky_relu, torch.tanh, F.elu,
            F.softplus, F.mish, torch.abs,
            lambda y: y.clamp(-0.5, 1.0), lambda y: y.clamp(min=0.25), lambda y: y.clamp(max=0.5),
            lambda y: F.hardtanh(y, 0.0, 0.75),
            lambda y: y * y, lambda y: (y.abs() + 0.5).sqrt(), lambda y: y.exp().clamp(max=8.0),
            lambda y: F.gelu(y, approximate="tanh"),
        ]
    )  # fmt: skip


def _max_pool(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    kernel = rng.choice([2, 3])
    options = {
        "stride": rng.choice([1, 2, 3]),
        "padding": rng.randint(0, kernel // 2),
        "dilation": rng.choice([1, 1, 2]),
    }
    return lambda y: F.max_pool2d(y, kernel, ceil_mode=options["stride"] > 1, **options)


def _average_pool(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    kernel, flags = rng.choice([2, 3, (2, 3)]), (rng.random() < 0.5, rng.random() < 0.5)
    stride, padding, divisor = rng.choice([1, 2, 3]), rng.randint(0, 1), rng.choice([None, None, None, 5])
    if rng.random() < 0.2:
        return lambda y: F.avg_pool1d(y.flatten(2), 2, 2, 0, *flags).unsqueeze(2)
    return lambda y: F.avg_pool2d(y, kernel, stride, padding, *flags, divisor)


def _adaptive_pool(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    size = rng.randint(1, 7), rng.randint(1, 7)
    pool = rng.choice([F.adaptive_avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
    return lambda y: pool(y, size)


def _pad(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    pads = [rng.randint(0, 2) for _ in range(4)]
    mode = rng.choice(["zero", "value", "reflect", "replicate", "circular", "negative"])
    if mode == "zero":
        return lambda y: F.pad(y, pads)
    if mode == "value":
        return lambda y: F.pad(y, pads, value=0.7)
    if mode == "negative":
        return lambda y: F.pad(y, [-1, 1, 0, -1])
    return lambda y: F.pad(y, pads, mode=mode)


def _residual(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    branch = m.conv(x, x.shape[1], 3, padding=1)
    kind = rng.randrange(4)
    if kind == 0:
        return lambda y: y + branch(y)
    if kind == 1:
        return lambda y: F.relu(branch(F.relu(y)) + y)
    if kind == 2:
        return lambda y: y - branch(y)
    scale = rng.choice([0.25, 0.5, 1.0, 2.0, 0.3])
    gain = nn.Parameter(torch.full((1,), scale))
    m.parts.append(nn.ParameterList([gain]))
    return lambda y: y + gain * branch(y)


def _gate(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    gate = m.conv(x, x.shape[1], 1)
    if rng.random() < 0.5:
        return lambda y: y * torch.sigmoid(gate(y))
    return lambda y: y * torch.sigmoid(gate(F.adaptive_avg_pool2d(y, 1)))


def _concat(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    branch = m.conv(x, 4, 1)
    kind = rng.randrange(4)
    if kind == 0:
        return lambda y: torch.cat([y, branch(y)], 1)
    if kind == 1:
        return lambda y: torch.cat([branch(y), torch.sigmoid(branch(y)), F.relu(branch(y))], 1)
    if kind == 2:
        return lambda y: torch.cat([y, y.flip(3)], 2)
    constant = torch.linspace(-1, 1, x.shape[3]).expand(1, 1, x.shape[2], -1)
    return lambda y: torch.cat([y, constant.expand(y.shape[0], -1, -1, -1)], 1)


def _shared(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    block = m.conv(x, x.shape[1], 3, padding=1)
    if rng.random() < 0.5:
        return lambda y: F.relu(block(F.relu(block(y))))
    return lambda y: block(y) + block(F.relu(y))


def _constant(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    channels = x.shape[1]
    buffer = torch.randn(1, channels, 1, 1) * 0.5 + 1
    one, half, zero = (
        torch.ones(1),
        torch.full((1,), rng.choice([0.25, 0.5, 1.0, 2.0, 0.3])),
        torch.zeros(1, channels, 1, 1),
    )
    place = torch.randn(1, channels, *x.shape[2:]) * 0.3
    return rng.choice(
        [
            lambda y: y * one, lambda y: y + zero, lambda y: y * 1.0 + 0.0, lambda y: one * y + zero,
            lambda y: y * half,
            lambda y: y / 2, lambda y: y * buffer, lambda y: y + buffer, lambda y: y + place,
            lambda y: y * place,
            lambda y: y * -0.5, lambda y: 1.0 - y, lambda y: y + torch.arange(y.shape[3]) / 10,
            lambda y: y - buffer,
            lambda y: y + torch.ones(y.shape[0], 1, 1, 1), lambda y: y / buffer.abs().add(0.5),
            lambda y: y * torch.full((1,), 0.5),
        ]
    )  # fmt: skip


def _movement(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    return rng.choice(
        [
            lambda y: y.transpose(2, 3), lambda y: y[:, :, 1:], lambda y: y[:, ::2], lambda y: y.flip(2),
            lambda y: y.roll(1, 3),
            lambda y: F.pixel_shuffle(y, 2), lambda y: F.pixel_unshuffle(y, 2),
            lambda y: F.channel_shuffle(y, 2),
            lambda y: torch.cat(y.chunk(2, 1)[::-1], 1), lambda y: y.unfold(2, 2, 2).flatten(1, 1).mean(-1),
            lambda y: y.repeat(1, 1, 2, 1),
            lambda y: F.interpolate(y, scale_factor=2),
            lambda y: F.interpolate(y, size=(7, 9), mode="bilinear", align_corners=True),
            lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
            lambda y: y.reshape(y.shape[0], -1, y.shape[3], y.shape[2]),
            lambda y: F.dropout(y, training=False), lambda y: y.contiguous(memory_format=torch.channels_last),
            lambda y: y.squeeze().reshape(y.shape),
        ]
    )  # fmt: skip


def _attention(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    width = x.shape[1]
    q, k, v = (m.part(nn.Linear(width, width)) for _ in range(3))

    def step(y: Tensor) -> Tensor:
        tokens = y.flatten(2).transpose(1, 2)
        tokens = tokens + F.scaled_dot_product_attention(q(tokens), k(tokens), v(tokens))
        return tokens.transpose(1, 2).reshape(y.shape)

    return step


def _mlp(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    up, down, norm = (
        m.part(nn.Linear(x.shape[1], 16)),
        m.part(nn.Linear(16, x.shape[1])),
        m.part(nn.LayerNorm(x.shape[1])),
    )
    tokens = rng.random() < 0.7

    def step(y: Tensor) -> Tensor:
        z = y.permute(0, 2, 3, 1)
        return (z + down(F.gelu(up(norm(z))))).permute(0, 3, 1, 2)

    def rows(y: Tensor) -> Tensor:
        return y * norm(down(F.gelu(up(y.mean((2, 3))))))[:, :, None, None]

    return step if tokens else rows


def _statistics(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    return rng.choice(
        [
            lambda y: y.softmax(1), lambda y: y - y.mean((2, 3), keepdim=True),
            lambda y: F.normalize(y, dim=1),
            lambda y: y.max(1, keepdim=True)[0] + y,
            lambda y: y.mean(1, keepdim=True) * y, lambda y: F.lp_pool2d(y.abs() + 0.1, 2, 2),
            lambda y: y.sum(1, keepdim=True) / 4 + y,
            lambda y: F.local_response_norm(y, 2), lambda y: y.amax((2, 3), keepdim=True) - y,
            lambda y: F.glu(y, 1),
            lambda y: torch.maximum(y, y.flip(1)), lambda y: torch.where(y > 0, y, 0.1 * y),
            lambda y: y.cumsum(2) / 8,
        ]
    )  # fmt: skip


def _transposed(m: RandomModule, x: Tensor, rng: random.Random) -> Step:
    return m.part(nn.ConvTranspose2d(x.shape[1], 8, 2, 2))


STEPS: dict[str, Build] = {
    "convolution": _convolution,
    "norm": _norm,
    "layer norm": _layer_norm,
    "activation": _activation,
    "max pool": _max_pool,
    "average pool": _average_pool,
    "adaptive pool": _adaptive_pool,
    "pad": _pad,
    "residual": _residual,
    "gate": _gate,
    "concat": _concat,
    "shared": _shared,
    "constant": _constant,
    "movement": _movement,
    "attention": _attention,
    "mlp": _mlp,
    "statistics": _statistics,
    "transposed convolution": _transposed,
}
HEADS: Sequence[str] = ("mean", "flatten", "convolution")
