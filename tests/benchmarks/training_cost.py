"""Seconds a step of every method of training, as ratios to a plain fine-tune with the same batch, in one run.

    python -m tests.benchmarks.training_cost [--model builtin:cifar10-resnet20] [--batch 128] [--rounds 12]

Methods take turns step by step, so that a slow minute of the machine hits all of them; medians are
compared. Random images and labels: the time of a step does not depend on what they show. No teacher, which
would add the same to all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mixport.model.float_model import FloatModel, load_model
from mixport.model.output_classes import output_classes
from mixport.quantize.learn.loop.checkpoints import NoCheckpoints
from mixport.records.calibration_set import CalibrationSet
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.train.data.batches import Batch, BatchSource
from mixport.train.data.training_images import split
from mixport.train.loop.loop import Phase, PhaseRun
from mixport.train.loop.losses import Objective
from mixport.train.loop.settings import LoopSettings
from mixport.train.loop.trainee import Trainee
from mixport.train.nipq.budget import Budget
from mixport.train.nipq.method import Nipq, NipqSettings
from mixport.train.robust.trainee import RobustSettings, RobustTrainee


def main() -> None:
    options = _options()
    model = load_model(options.model, random_weights=options.random_weights)
    height, width = model.preprocessing.size
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4 * options.batch, height, width, 3), dtype=np.uint8)
    classes = output_classes(model)
    labels = random.integers(0, classes, len(images))
    data = split(images, labels, source="random", sha256="", seed=0, classes=classes)
    source = BatchSource(
        data=data,
        preprocessing=model.preprocessing,
        batch=options.batch,
        augmentation="none",
        mix="none",
        classes=classes,
        seed=0,
        device=torch.device("cpu"),
    )
    batch = next(iter(source.epoch(0)))
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: _run(name, trainee, source)
            for name, trainee in _trainees(model, images, options.batch, Path(folder)).items()
        }
        for run in runs.values():
            run.trainee.start_epoch(torch.Generator().manual_seed(0))
        seconds = _timed(runs, batch, rounds=options.rounds)
    plain = statistics.median(seconds["plain"])
    print(f"{model.name}, batch {options.batch}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:24} {1000 * middle:8.1f} ms   {middle / plain:5.2f}")


def _run(name: str, trainee: Trainee, source: BatchSource) -> PhaseRun:
    settings = LoopSettings(optimiser="sgd", lr=1e-5, sharpness="sam" if name == "sam" else "none")
    phase = Phase(name=name, epochs=1, make=lambda _: trainee)
    return PhaseRun(phase, trainee, source, Objective(teacher=None), settings, first=0)


def _trainees(model: FloatModel, images: np.ndarray, batch: int, folder: Path) -> dict[str, Trainee]:
    device = torch.device("cpu")

    def robust(**settings: object) -> Trainee:
        return RobustTrainee(model.module, RobustSettings(**settings), device=device)  # type: ignore[arg-type]

    def nipq(noise: str) -> tuple[Trainee, Callable[[], Trainee]]:
        np.save(folder / "images.npy", images)
        method = Nipq(
            model=model,
            target=load_target("ort-cpu"),
            calibration=CalibrationSet(
                images_path=folder / "images.npy",
                count=min(len(images), 128),
                method="random",
                recipe_key="",
                content_sha256="",
            ),
            settings=NipqSettings(
                budget=Budget.parse("w4a4"),
                noise=noise,  # type: ignore[arg-type]
                noise_epochs=1,
                finetune_epochs=1,
                edge_convention="brecq",
            ),
            workdir=folder,
            checkpoints=NoCheckpoints(),
            progress=SilentProgress(),
            batch=batch,
            steps=1,
        )
        first, second = method.phases()
        made = first.make(None)
        return made, lambda: second.make(made)

    uniform, _ = nipq("uniform")
    histogram, finetune = nipq("histogram")
    return {
        "plain": robust(),
        "symreg": robust(symmetry=1.0),
        "symreg 2:2": robust(symmetry=1.0, pairing="2:2"),
        "satnl": robust(bound=2.0),
        "symreg+satnl": robust(symmetry=1.0, bound=2.0),
        "kure": robust(kurtosis=1.0),
        "sam": robust(),
        "nipq, uniform noise": uniform,
        "nipq, histogram noise": histogram,
        "nipq, fine-tune": finetune(),
    }


def _timed(runs: dict[str, PhaseRun], batch: Batch, *, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run.step(batch)
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:cifar10-resnet20")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    return parser.parse_args()


if __name__ == "__main__":
    main()
