"""Latency of a bundle's model against other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixport.progress import Progress
from mixport.release import ReleaseBundle
from mixport.validate.latency import Latency, measure
from mixport.validate.profile import Profile, profile


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
        latency: of the file.
        ratio: file / bundle: 2.0 means that the file takes twice as long.
        bundle_ratio: bundle / file: below 1 the bundle is the faster one.
    """

    name: str
    latency: Latency
    ratio: float
    bundle_ratio: float


def bench(bundle: ReleaseBundle, *, against: Sequence[Contender], seconds: float, seed: int, progress: Progress) -> tuple[BenchRow, ...]:
    """Time a bundle's model, and other ONNX files in the same process.

    Args:
        bundle: what a build wrote.
        against: other ONNX files; their input may differ in name, but must be one float32 image batch.
        seconds: budget of the whole measurement.
        seed: of the input values.
        progress: shows rounds.

    Returns:
        the bundle's row first, then one row a file, in order.
    """
    contenders = [Contender(name=str(bundle.path), path=bundle.model_path), *against]
    config = bundle.manifest.validation.session_policy.config
    timed = measure([one.path for one in contenders], config=config, seconds=seconds, seed=seed, progress=progress)
    return compare(contenders, timed)


def profile_bundle(bundle: ReleaseBundle, *, seed: int, progress: Progress) -> Profile:
    """Where the time of one inference goes, node by node and module by module."""
    return profile(
        bundle.model_path,
        config=bundle.manifest.validation.session_policy.config,
        sites={site.name for site in bundle.manifest.sites},
        seed=seed,
        progress=progress,
    )


def compare(contenders: Sequence[Contender], timed: Sequence[Latency]) -> tuple[BenchRow, ...]:
    """Rows with ratios of medians to the first one's."""
    own = timed[0].median_ms
    return tuple(
        BenchRow(name=one.name, latency=latency, ratio=latency.median_ms / own, bundle_ratio=own / latency.median_ms)
        for one, latency in zip(contenders, timed, strict=True)
    )
