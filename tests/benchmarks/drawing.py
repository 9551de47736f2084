"""Overhead of the drawing stage over a bare diffusers loop of the same batch size, interleaved.

    python -m tests.benchmarks.drawing --generator DIR --images N --batch B [--steps N] [--rounds R] [--json]

A round draws the same images both ways, in turn first. Ours is the whole stage after the pipeline is open:
prompts, embeddings, PNG shards on disk with fsync, manifest. The bare loop encodes its prompts inside the
pipeline's call, as a script of five lines would, and keeps nothing. Opening the pipeline is the same work for
both and is not counted. The ratio is that of the medians; the bar of the project is 1.03.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixport.calibration.drawn_images import drawn_folder as drawn_folder
from mixport.calibration.drawn_images.drawn_folder import draw_into
from mixport.calibration.generator.open_pipeline import OpenPipeline, open_pipeline, quiet_libraries
from mixport.calibration.generator.request import DrawingRequest, resolve_request
from mixport.calibration.prompts.prompts import Prompt, prompts
from mixport.calibration.recipe import GeneratorSettings, PromptRecipe
from mixport.records.progress import SilentProgress
from mixport.storage.store import Store

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def bare(opened: OpenPipeline, request: DrawingRequest, sequence: tuple[Prompt, ...]) -> None:
    """A diffusers loop and nothing else."""
    size = {} if request.size is None else {"height": request.size[0], "width": request.size[1]}
    for first in range(0, len(sequence), request.batch):
        batch = sequence[first : first + request.batch]
        with torch.inference_mode():
            opened.pipe(
                prompt=[one.text for one in batch],
                generator=[torch.Generator("cpu").manual_seed(one.seed) for one in batch],
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                output_type="np",
                **size,
            )


def ours(opened: OpenPipeline, request: DrawingRequest, *, images: int) -> None:
    """The stage, into an empty cache."""
    real: Any = drawn_folder.open_pipeline
    drawn_folder.open_pipeline = lambda _: opened
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            draw_into(request, count=images, store=Store(Path(folder)), progress=SilentProgress()),
        ):
            pass
    finally:
        drawn_folder.open_pipeline = real


def timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="builtin")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    recipe = PromptRecipe(strategy="mixup", class_names=CLASSES)
    settings = GeneratorSettings(source=options.generator, batch=options.batch, steps=options.steps)
    with tempfile.TemporaryDirectory() as cache:
        request = resolve_request(recipe, settings, cache=Path(cache))
    images = -(-options.images // request.batch) * request.batch
    sequence = prompts(recipe, count=images)
    opened = open_pipeline(request)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    ways: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(opened, request, sequence),
        "ours": lambda: ours(opened, request, images=images),
    }
    with quiet_libraries():
        bare(opened, request, sequence[: request.batch])
        for turn in range(options.rounds):
            for way in ("bare", "ours") if turn % 2 == 0 else ("ours", "bare"):
                seconds[way].append(timed(ways[way]))
    median = {way: statistics.median(values) for way, values in seconds.items()}
    figures = {
        "images": images,
        "batch": request.batch,
        "steps": request.steps,
        "device": request.device,
        "threads": torch.get_num_threads(),
        "bare_images_per_s": round(images / median["bare"], 3),
        "ours_images_per_s": round(images / median["ours"], 3),
        "ratio": round(median["ours"] / median["bare"], 4),
        "seconds": {way: [round(value, 3) for value in values] for way, values in seconds.items()},
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
