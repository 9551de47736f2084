"""Latency of a bundle's model against other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixport.progress import Progress
from mixport.release import read_bundle
from mixport.validate.latency import Latency, measure


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One file's latency and its ratio to the bundle's: 2.0 means twice as slow."""

    name: str
    latency: Latency
    ratio: float


def bench(bundle: Path, *, against: Sequence[Path], seconds: float, seed: int, progress: Progress) -> tuple[BenchRow, ...]:
    """Time a bundle's model, and other ONNX files in the same process.

    Args:
        bundle: folder that a build wrote.
        against: other ONNX files; their input may differ in name, but must be one float32 image batch.
        seconds: budget of the whole measurement.
        seed: of the input values.
        progress: shows rounds.

    Returns:
        the bundle's row first, then one row a file, in order.
    """
    found = read_bundle(bundle)
    files = [found.model_path, *against]
    config = found.manifest.validation.session_policy.config
    timed = measure(files, config=config, seconds=seconds, seed=seed, progress=progress)
    own = timed[0].median_ms
    return tuple(
        BenchRow(name=str(bundle if index == 0 else item.path), latency=item, ratio=item.median_ms / own)
        for index, item in enumerate(timed)
    )
