"""Draws calibration sets in processes that can be killed: imports once, then forks a child for each line it
reads.

A line is JSON {"cache", "generator", "images", "batch", "out"}; the answer is the child's process id. A child
that finishes writes OUT.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What opening a pipeline imports, so that children start at once. No tensor is computed here: children
# inherit no threads.
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from mixport.calibration.calibrate import calibrate
from mixport.calibration.recipe import CalibrationRecipe, GeneratorSettings, PromptRecipe
from mixport.records.calibration_set import Preprocessing
from mixport.storage.store import Store

WARM = (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    CLIPTextModel,
    CLIPTokenizer,
)


class Counter:
    """A Progress that counts drawn images."""

    def __init__(self) -> None:
        self.drawn = 0

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            self.drawn += count if description == "drawing images" else 0

        yield advance


def draw(job: dict[str, str]) -> None:
    recipe = CalibrationRecipe(
        method="mixup",
        source=None,
        images=int(job["images"]),
        seed=0,
        preprocessing=Preprocessing(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1)),
        prompts=PromptRecipe(strategy="mixup", class_names=("cat", "dog", "frog", "ship", "truck")),
        generator=GeneratorSettings(
            source=job["generator"], steps=3, guidance=2.0, batch=int(job["batch"]), device="cpu"
        ),
    )
    progress, store = Counter(), Store(Path(job["cache"]))
    made = calibrate(recipe, store=store, progress=progress)
    answer = {"content_sha256": made.content_sha256, "drawn": progress.drawn, "damaged": len(store.damaged)}
    beside = Path(job["out"]).with_suffix(".new")
    beside.write_text(json.dumps(answer))
    beside.replace(job["out"])


def main() -> None:
    # Children are not waited for: who sent the line watches OUT and the process id.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            draw(json.loads(line))
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
