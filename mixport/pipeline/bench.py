"""Latency of a bundle's model against other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.progress import Progress
from mixport.records.runtime import TimingRules
from mixport.release.bundle import ReleaseBundle
from mixport.validate.run.latency import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    WARMUP_RUNS,
    Latency,
    measure,
    summarise,
    timing_job,
    timing_policy,
)
from mixport.validate.run.profile import Profile, profile
from mixport.validate.runtimes.folder_runtime import FolderRuntime

NATIVE = "native"
"""onnxruntime in this process."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An ONNX file that a bundle is timed against, and what it is called."""

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One file's latency beside the bundle's.

    Attributes:
        name: of the bundle or the contender.
        runtime: where it was timed, as in `--runtime NAME`.
        latency: of the file.
        ratio: file / bundle: 2.0 means that the file takes twice as long.
        bundle_ratio: bundle / file: below 1 the bundle is the faster one.
    """

    name: str
    runtime: str
    latency: Latency
    ratio: float
    bundle_ratio: float


def bench(
    bundle: ReleaseBundle,
    *,
    against: Sequence[Contender],
    seconds: float,
    seed: int,
    progress: Progress,
    runtime: FolderRuntime | None = None,
) -> tuple[BenchRow, ...]:
    """Time a bundle's model, and other ONNX files in the same process.

    Args:
        bundle: what a build wrote.
        against: other ONNX files; their input may differ in name, but must be one float32 image batch.
        seconds: budget of the whole measurement.
        seed: of the input values.
        progress: shows rounds, where the runtime is the native one.
        runtime: times them in the place of onnxruntime in this process; one thread there too.

    Returns:
        the bundle's row first, then one row a file, in order.

    Raises:
        BadInputError: a file that does not load, or whose input is no float32 image batch.
        RuntimeUnavailableError: the runtime cannot time, or refuses a file.
    """
    contenders = [Contender(name=str(bundle.path), path=bundle.model_path), *against]
    config = bundle.manifest.validation.session_policy.config
    paths = [one.path for one in contenders]
    if runtime is None:
        return compare(
            contenders,
            measure(paths, config=config, seconds=seconds, seed=seed, progress=progress),
            runtime=NATIVE,
        )
    rules = TimingRules(warmup=WARMUP_RUNS, min_rounds=MIN_ROUNDS, max_rounds=MAX_ROUNDS, seconds=seconds)
    _, times = runtime.time(
        [timing_job(path, seed=seed) for path in paths], policy=timing_policy(config), timing=rules
    )
    for one, found in zip(contenders, times, strict=True):
        if found.refused:
            raise RuntimeUnavailableError(
                f"runtime {runtime.name} refuses {one.path}: {found.refused}", hint="leave that file out"
            )
    timed = [summarise(path, found.times_ms) for path, found in zip(paths, times, strict=True)]
    return compare(contenders, timed, runtime=runtime.name)


def profile_bundle(bundle: ReleaseBundle, *, seed: int, progress: Progress) -> Profile:
    """Where the time of one inference goes, node by node and module by module."""
    return profile(
        bundle.model_path,
        config=bundle.manifest.validation.session_policy.config,
        sites={site.name for site in bundle.manifest.sites},
        seed=seed,
        progress=progress,
    )


def compare(
    contenders: Sequence[Contender], timed: Sequence[Latency], *, runtime: str
) -> tuple[BenchRow, ...]:
    """Rows with ratios of medians to the first one's. Raises RuntimeUnavailableError where a clock shows no
    time at all.
    """
    own = timed[0].median_ms
    if not all(latency.median_ms for latency in timed):
        raise RuntimeUnavailableError(
            f"the clock of runtime {runtime} is too coarse for these files: a median is 0 ms"
        )
    return tuple(
        BenchRow(
            name=one.name,
            runtime=runtime,
            latency=latency,
            ratio=latency.median_ms / own,
            bundle_ratio=own / latency.median_ms,
        )
        for one, latency in zip(contenders, timed, strict=True)
    )
