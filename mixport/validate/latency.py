"""Latency of ONNX files side by side: one process, one thread, batch 1, rounds interleaved so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.errors import BadInputError
from mixport.progress import Progress
from mixport.targets import SessionRules
from mixport.validate.session import open_session

_WARMUP_RUNS = 3
_MIN_ROUNDS = 20
_MAX_ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one inference.

    Attributes:
        path: the ONNX file.
        median_ms: median over the rounds, milliseconds.
        p90_ms: 90th percentile, milliseconds.
        rounds: inferences timed.
        size_bytes: of the file.
    """

    path: Path
    median_ms: float
    p90_ms: float
    rounds: int
    size_bytes: int


def measure(files: Sequence[Path], *, config: Mapping[str, str], seconds: float, seed: int, progress: Progress) -> tuple[Latency, ...]:
    """Time files against each other on ONNX Runtime's CPU provider.

    Args:
        files: ONNX files with one float32 image input; a symbolic or fixed batch axis of 1.
        config: session configuration entries, the same for every file.
        seconds: budget of the whole measurement, without loading; at least 20 rounds are run.
        seed: of the input values.
        progress: shows rounds.

    Raises:
        BadInputError: a file that does not load, or whose input is no float32 image batch.
    """
    for path in files:
        if not path.is_file():
            raise BadInputError(f"{path} is not a file", hint="mixport bench BUNDLE --against FILE.onnx")
    policy = SessionRules(optimization_level="all", threads=1, config=dict(config))
    sessions = [open_session(path, policy=policy) for path in files]
    feeds = [_feed(path, session, seed) for path, session in zip(files, sessions, strict=True)]
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(_WARMUP_RUNS):
            session.run(None, feed)
    times: list[list[float]] = [[] for _ in files]
    deadline = time.perf_counter() + seconds
    with progress.track("bench", total=_MAX_ROUNDS, unit="rounds") as advance:
        for done in range(_MAX_ROUNDS):
            if done >= _MIN_ROUNDS and time.perf_counter() > deadline:
                break
            # Each round starts with another file, so that none always runs in the wake of the same one.
            for position in range(len(files)):
                index = (done + position) % len(files)
                start = time.perf_counter_ns()
                sessions[index].run(None, feeds[index])
                times[index].append((time.perf_counter_ns() - start) / 1e6)
            advance(1)
    return tuple(
        Latency(
            path=path,
            median_ms=statistics.median(taken),
            p90_ms=statistics.quantiles(taken, n=10)[-1],
            rounds=len(taken),
            size_bytes=path.stat().st_size,
        )
        for path, taken in zip(files, times, strict=True)
    )


def _feed(path: Path, session: Any, seed: int) -> dict[str, NDArray[np.float32]]:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not inputs[0].shape:
        found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
        raise BadInputError(f"{path} has the inputs {found}, allowed one float32 image batch", hint="export the model with one image input")
    batch, *rest = inputs[0].shape
    if not all(isinstance(side, int) for side in rest) or (isinstance(batch, int) and batch != 1):
        raise BadInputError(
            f"{path} has the input shape {inputs[0].shape}, allowed batch 1 or symbolic, and fixed sides",
            hint="export it with a fixed image size",
        )
    shape = (1, *(int(side) for side in rest))
    return {str(inputs[0].name): np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}
