"""Quantises and lowers the tiny model in processes that can be killed: imports once, then forks a child for
each line it reads.

A line is JSON {"cache", "out"}; the answer is the child's process id. A child that finishes writes OUT: the
SHA-256 of the ONNX file, how many steps were learned, and which files its cache has in work. Activations are
spilled to files, however small they are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# What quantising imports, so that children start at once. No tensor is computed here: children inherit no
# threads.
import mixport.lower.lowering
import mixport.quantize.learn.session
import mixport.quantize.quantizer
from mixport.model.float_model import load_model
from mixport.pipeline import stages
from mixport.pipeline.build_plan import resolve
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.stages import StageContext, StageLog
from mixport.records.fingerprint import sha256_file
from mixport.records.progress import Advance
from mixport.storage.store import Store

ITERS = 40


class Counter:
    """A Progress that counts learned steps, and those taken from the cache."""

    def __init__(self) -> None:
        self.learned = self.reused = 0

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Iterator[Advance]:
        def advance(count: int, detail: str = "") -> None:
            if description == "reconstruct":
                reused = "from the cache" in detail
                self.learned, self.reused = self.learned + (not reused) * count, self.reused + reused * count

        yield advance


def work(job: dict[str, str]) -> None:
    torch.set_num_threads(1)
    mixport.quantize.learn.session._LARGEST_IN_MEMORY = 0
    values = {
        "model": "tests.models:tiny",
        "scheme": "w2a4",
        "iters": ITERS,
        "calib": "noise",
        "images": 12,
        "device": "cpu",
    }
    options = BuildOptions.of({**values, "cache": job["cache"]})
    progress = Counter()
    plan = resolve(options)
    context = StageContext(store=Store(plan.cache), progress=progress, log=StageLog(lambda _: None))
    model, (target,) = load_model(options.model), plan.targets
    calibration = stages.calibrate(context, model, plan.recipe(model))
    quantized = stages.quantize(context, plan, model, calibration, target, model_key="tiny")
    lowered = stages.lower(context, quantized, target)
    assert quantized.model.reconstruction is not None
    answer = {
        "sha256": sha256_file(lowered.model_path),
        "units": len(quantized.model.reconstruction.units),
        "learned": progress.learned,
        "reused": progress.reused,
    }
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
            # A background job of a shell inherits an ignored SIGINT, and Python then installs no handler.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                work(json.loads(line))
            except KeyboardInterrupt:
                os._exit(130)
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
