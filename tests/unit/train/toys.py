"""Trainees and checkpoints small enough to compute by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixport.records.calibration_set import Preprocessing
from mixport.records.progress import Advance
from mixport.train.data.batches import BatchSource
from mixport.train.data.training_images import split
from mixport.train.loop.trainee import Rates

CLASSES, SIDE = 3, 8


def toy_source(
    count: int = 21,
    *,
    labels: bool = True,
    batch: int = 4,
    side: int = SIDE,
    classes: int = CLASSES,
    **changes: Any,
) -> BatchSource:
    """Noise with labels; 20 images to train on and one to look at."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    made = np.arange(count, dtype=np.int64) % classes if labels else None
    given: dict[str, Any] = {"augmentation": "flip+crop", "mix": "none", "seed": 0, **changes}
    return BatchSource(
        data=split(images, made, source="toys", sha256="ab", seed=0, classes=classes),
        preprocessing=Preprocessing(size=(side, side), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        batch=batch,
        classes=classes,
        device=torch.device("cpu"),
        **given,
    )


def toy_net() -> nn.Module:
    """Convolutions with norms, with more channels than a vector register has numbers, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 20, 3, padding=1),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.Conv2d(20, 20, 3, padding=1, groups=20),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(20, CLASSES),
        )
    return net.eval()


class Scalar(nn.Module):
    """One number p; the outputs do not depend on it, the penalty does; a `Trainee`.

    Args:
        start: of p.
        penalty: of p, added to the loss.
    """

    def __init__(self, start: float, penalty: Callable[[Tensor], Tensor], *, factor: float = 1.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(start))
        self._penalty, self._factor = penalty, factor
        self.seen: list[float] = []
        self.shown: list[float] = []

    @property
    def module(self) -> nn.Module:
        return self

    def groups(self, *, weight_decay: float) -> list[Rates]:
        return [Rates(parameters=[self.p], factor=self._factor, decay=weight_decay)]

    def start_epoch(self, generator: torch.Generator) -> None:
        self.noise = float(torch.rand((), generator=generator))

    def outputs(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), CLASSES)

    def penalty(self) -> Tensor | None:
        return self._penalty(self.p)

    def predict(self, x: Tensor) -> Tensor:
        self.shown.append(float(self.p.detach()))
        return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), CLASSES).float()

    def after_step(self) -> None:
        self.seen.append(float(self.p.detach()))

    def report(self) -> Mapping[str, float]:
        return {"noise": self.noise}


class Folders:
    """Checkpoints in a folder. Those that are not needed any more are noted and stay, so that a training can
    be broken off anywhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.forgotten: list[int | str] = []
        root.mkdir(exist_ok=True)

    def find(self, place: int | str) -> Path | None:
        folder = self.root / str(place)
        return folder if folder.is_dir() else None

    @contextmanager
    def keep(self, place: int | str) -> Generator[Path]:
        beside = self.root / f"{place}.new"
        beside.mkdir()
        yield beside
        beside.rename(self.root / str(place))

    def forget(self, place: int | str) -> None:
        self.forgotten.append(place)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def only(self, names: list[str], root: Path) -> Folders:
        """What a training has that was broken off when these stood there."""
        made = Folders(root)
        for name in names:
            shutil.copytree(self.root / name, root / name)
        return made


@dataclass
class Told:
    """A Progress that notes what it is told, and breaks off after some steps."""

    most: int | None = None
    total: int = 0
    done: int = 0
    reused: int = 0

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Generator[Advance]:
        if description == "train":
            self.total = total

        def advance(count: int, detail: str = "") -> None:
            if description != "train":
                return
            self.done += count
            self.reused += count if "from the cache" in detail else 0
            if self.most is not None and self.done >= self.most:
                raise KeyboardInterrupt

        yield advance
