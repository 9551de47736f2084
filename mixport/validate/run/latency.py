"""Latency of ONNX files side by side: one process, one thread, batch 1, rounds interleaved so that all meet
the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import BadInputError
from mixport.records.progress import Progress
from mixport.records.runtime import RuntimeJob
from mixport.records.targets import SessionRules
from mixport.validate.run.session import open_session

WARMUP_RUNS = 3
MIN_ROUNDS = 20
MAX_ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one inference.

    Attributes:
        path: the ONNX file.
        median_ms: median over the rounds, milliseconds.
        fastest_ms: of the fastest round, milliseconds.
        quartiles_ms: first and third quartile, milliseconds.
        p90_ms: 90th percentile, milliseconds.
        rounds: inferences timed.
        size_bytes: of the file.
    """

    path: Path
    median_ms: float
    fastest_ms: float
    quartiles_ms: tuple[float, float]
    p90_ms: float
    rounds: int
    size_bytes: int


def measure(
    files: Sequence[Path],
    *,
    config: Mapping[str, str],
    seconds: float,
    seed: int,
    progress: Progress,
    min_rounds: int = MIN_ROUNDS,
) -> tuple[Latency, ...]:
    """Time files against each other on ONNX Runtime's CPU provider.

    Args:
        files: ONNX files with one float32 image input; a symbolic or fixed batch axis of 1.
        config: session configuration entries, the same for every file.
        seconds: budget of the whole measurement, without loading.
        seed: of the input values.
        progress: shows rounds.
        min_rounds: that are run whatever the budget, at least 2.

    Raises:
        BadInputError: a file that does not load, or whose input is no float32 image batch.
    """
    for path in files:
        if not path.is_file():
            raise BadInputError(f"{path} is not a file", hint="mixport bench BUNDLE --against FILE.onnx")
    policy = timing_policy(config)
    sessions = [open_session(path, policy=policy) for path in files]
    feeds = [image_feed(path, session, seed) for path, session in zip(files, sessions, strict=True)]
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(WARMUP_RUNS):
            session.run(None, feed)
    times: list[list[float]] = [[] for _ in files]
    deadline = time.perf_counter() + seconds
    with progress.track("bench", total=MAX_ROUNDS, unit="rounds") as advance:
        for done in range(MAX_ROUNDS):
            if done >= min_rounds and time.perf_counter() > deadline:
                break
            # Each round starts with another file, so that none always runs in the wake of the same one.
            for position in range(len(files)):
                index = (done + position) % len(files)
                start = time.perf_counter_ns()
                sessions[index].run(None, feeds[index])
                times[index].append((time.perf_counter_ns() - start) / 1e6)
            advance(1)
    return tuple(summarise(path, taken) for path, taken in zip(files, times, strict=True))


def timing_job(path: Path, *, seed: int) -> RuntimeJob:
    """The file with one image of noise, for a runtime that is not this process. Raises BadInputError as
    `measure` does.
    """
    session = open_session(path, policy=SessionRules(optimization_level="disabled", threads=1))
    outputs = tuple(str(one.name) for one in session.get_outputs())
    return RuntimeJob(model=path.read_bytes(), feeds=(image_feed(path, session, seed),), outputs=outputs)


def summarise(path: Path, times_ms: Sequence[float]) -> Latency:
    """Median, quartiles and 90th percentile of two or more times."""
    first, _, third = statistics.quantiles(times_ms, n=4)
    return Latency(
        path=path,
        median_ms=statistics.median(times_ms),
        fastest_ms=min(times_ms),
        quartiles_ms=(first, third),
        p90_ms=statistics.quantiles(times_ms, n=10)[-1],
        rounds=len(times_ms),
        size_bytes=path.stat().st_size,
    )


def timing_policy(config: Mapping[str, str]) -> SessionRules:
    """One thread at the highest optimisation level, whatever the file's own policy: ratios are of equal
    sessions.
    """
    return SessionRules(optimization_level="all", threads=1, config=dict(config))


def image_feed(path: Path, session: Any, seed: int) -> dict[str, NDArray[np.float32]]:
    """One image of normal noise, by the input's name. Raises BadInputError where the file takes anything
    else.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not inputs[0].shape:
        found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
        raise BadInputError(
            f"{path} has the inputs {found}, allowed one float32 image batch",
            hint="export the model with one image input",
        )
    batch, *rest = inputs[0].shape
    if not all(isinstance(side, int) for side in rest) or (isinstance(batch, int) and batch != 1):
        raise BadInputError(
            f"{path} has the input shape {inputs[0].shape}, allowed batch 1 or symbolic, and fixed sides",
            hint="export it with a fixed image size",
        )
    shape = (1, *(int(side) for side in rest))
    return {str(inputs[0].name): np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}
