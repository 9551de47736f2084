"""Small modules for reconstruction, and what `mixport.quantize` hands to the engine, without building a
file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixport.model.float_model import FloatModel
from mixport.quantize import quantizer
from mixport.quantize.learn import session as learner
from mixport.quantize.learn.loop.activation_store import ActivationStore
from mixport.quantize.learn.loop.checkpoints import NoCheckpoints, UnitCheckpoints
from mixport.quantize.learn.reconstruction.reconstruct import Reconstructed, reconstruct
from mixport.quantize.learn.reconstruction.task import Task
from mixport.records.calibration_set import CalibrationSet, Preprocessing
from mixport.records.choices.reconstruction_preset import PRESETS, Preset, ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.progress import Advance
from mixport.records.targets import load_target

_CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def changed(preset: Preset, **fields: Any) -> Preset:
    """The preset with other fields, of its own or of its only stage."""
    own = {name: value for name, value in fields.items() if name in Preset.__dataclass_fields__}
    rest = {name: value for name, value in fields.items() if name not in own}
    if rest:
        (stage,) = preset.stages
        own["stages"] = (replace(stage, **rest),)
    return replace(preset, **own)


DEFAULT = changed(PRESETS["mixport"], least_squares=False, scarce=None)
"""Learns from the nearest codes, which a few steps make better (those of least squared error they often do
not), and takes them all.
"""


class Stack(nn.Module):
    """Three convolutions and a head; the middle ones are what is learned at w2a4."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, bias=bias),
            nn.Conv2d(8, 8, 3, bias=bias),
        )
        self.head = nn.Linear(8, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.third(torch.relu(self.second(x))))
        return self.head(x.mean((2, 3)))


class Windows(nn.Module):
    """Four windows an image: between the splits the first axis has four rows an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.a, self.b, self.head = (
            nn.Conv2d(3, 8, 2, 2),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).reshape(-1, 8, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
        x = x + self.b(torch.relu(self.a(x)))
        return self.head(x.reshape(-1, 4, 16, 8).mean((1, 2)))


class ClassToken(nn.Module):
    """A learned token repeated for each image: neither a constant nor a size, and it depends on no image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.a, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head((x + torch.relu(self.a(x)))[:, 0])


class Block(nn.Module):
    """The second half of a transformer block; pre-activations are large, so that ReLU can stand for GELU."""

    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = (
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.GELU(approximate),
            nn.Linear(16, 8, bias=False),
        )
        self.fc1.weight *= 4.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Mlps(nn.Module):
    """Patches, a block with the exact GELU, one with tanh, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.blocks = nn.Sequential(Block("none"), Block("tanh"))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def seeded(make: Callable[[], nn.Module], change: Callable[[Any], None] | None = None) -> nn.Module:
    """A module with seeded weights and stated preprocessing, changed in place."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        module = make().eval()
        if change is not None:
            change(module)
    module.pretrained_cfg = _CONFIG  # type: ignore[assignment]
    return module


def stack() -> nn.Module:
    """Stack as it is."""
    return seeded(Stack)


def without_biases() -> nn.Module:
    """Stack whose learned layers have no bias."""
    return seeded(lambda: Stack(bias=False))


def class_token() -> nn.Module:
    """See ClassToken."""
    return seeded(ClassToken)


def windows() -> nn.Module:
    """Windows as it is."""
    return seeded(Windows)


def mlps() -> nn.Module:
    """Mlps as it is."""
    return seeded(Mlps)


def dead() -> nn.Module:
    """A channel of zero weights, one that is always negative before its Relu, and a layer that gives zeros
    alone.
    """

    def kill(m: Stack) -> None:
        m.second.weight[0] = 0.0
        m.second.bias[1] = -100.0
        m.third.weight.zero_()
        m.third.bias.fill_(-1.0)

    return seeded(Stack, kill)


def huge() -> nn.Module:
    """Weights whose outputs are finite and their squares are not."""

    def grow(m: Stack) -> None:
        m.second.weight *= 1e22
        m.second.bias *= 1e22
        m.third.weight *= 1e-22

    return seeded(Stack, grow)


@dataclass
class Recorder:
    """A Progress that remembers what it is told."""

    calls: list[tuple[int, str]] = field(default_factory=list)
    total: int = 0

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Any:
        def advance(count: int, detail: str = "") -> None:
            if description == "reconstruct":
                self.calls.append((count, detail))

        self.total = total if description == "reconstruct" else self.total
        advance_: Advance = advance
        yield advance_


class _Stop(Exception):
    pass


def float_model(module: nn.Module) -> FloatModel:
    """A small module as a float model for 16 x 16 pixels."""
    return FloatModel(
        module=module.requires_grad_(False),
        name="small",
        source="tests",
        sha256="c" * 64,
        preprocessing=Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
        class_names=None,
        input_shape=(1, 3, 16, 16),
    )


def calibration_of(folder: Path, *, images: int = 12) -> CalibrationSet:
    """Random images of 16 x 16 pixels, written to a folder."""
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (images, 16, 16, 3), np.uint8))
    return CalibrationSet(
        images_path=folder / "images.npy",
        count=images,
        method="images",
        recipe_key="a" * 64,
        content_sha256="b" * 64,
    )


def task_of(
    module: nn.Module, folder: Path, *, scheme: str = "w2a4", images: int = 12, **calibrated: Any
) -> tuple[Task, Callable[..., Tensor]]:
    """The task of a module, and its preprocessed images by slice: exactly what `quantize` would
    reconstruct.
    """
    calibration = calibration_of(folder, images=images)
    caught: list[Any] = []

    def stop(task: Task, pixels: Callable[[slice], Tensor], **_: Any) -> Reconstructed:
        caught.extend((task, pixels))
        raise _Stop

    real, learner.reconstruct = learner.reconstruct, stop
    try:
        quantizer.quantize(
            float_model(module),
            calibration,
            load_target("ort-cpu"),
            scheme=Scheme.parse(scheme, edge_convention="qdrop"),
            reconstruction=ReconstructionOptions(preset=DEFAULT, iters=1),
            workdir=folder,
        )
    except _Stop:
        pass
    finally:
        learner.reconstruct = real
    task, source = caught
    return replace(task, **calibrated), source


def learn(
    task: Task,
    images: Callable[[slice], Tensor],
    folder: Path,
    *,
    count: int = 12,
    iters: int = 20,
    seed: int = 0,
    checkpoints: UnitCheckpoints | None = None,
    largest: int = 1 << 30,
    progress: Recorder | None = None,
    preset: Preset = DEFAULT,
) -> Reconstructed:
    """Reconstruct on the CPU."""
    return reconstruct(
        task,
        images,
        count=count,
        preset=preset,
        iters=iters,
        seed=seed,
        store=ActivationStore(folder, largest=largest, device=torch.device("cpu")),
        checkpoints=checkpoints or NoCheckpoints(),
        progress=progress or Recorder(),
    )
