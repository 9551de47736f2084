"""A build's own look at latency: its file beside the float model, interleaved in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixport.records.progress import Progress
from mixport.records.targets import SessionRules
from mixport.validate.run.latency import Latency, measure

_SECONDS = 0.4
"""Budget of the rounds: a figure for orientation, not worth more of a build's time."""
_MIN_ROUNDS = 7
"""The fewest that have quartiles of their own on both sides of the median."""
_NOISE_RATIO = 1.05
"""Medians of some hundred interleaved rounds repeat within 2 or 3 % on a machine with other work."""
_FELT_MS = 0.1
"""Below that, what a session's call costs by itself decides, and not the model."""


@dataclass(frozen=True, kw_only=True)
class BuildLatency:
    """Batch 1, one thread, this machine.

    Attributes:
        model_ms: median of the file as it ships.
        float_ms: median of the float model; None where it was not measured.
        ratio: of model_ms to float_ms: below 1 the file is faster than the float model.
        model_quartiles_ms: first and third quartile.
        float_quartiles_ms: first and third quartile.
        rounds: that each of the two was run.
        slower: the file is slower than the float model, by more than noise.
        reason: why the float model was not measured; empty where it was.
    """

    model_ms: float
    float_ms: float | None
    ratio: float | None
    model_quartiles_ms: tuple[float, float]
    float_quartiles_ms: tuple[float, float] | None
    rounds: int
    slower: bool
    reason: str = ""


def build_latency(
    model: Path, float_file: Path | None, *, session: SessionRules, progress: Progress, reason: str = ""
) -> BuildLatency:
    """Time the file, and the float one where there is one.

    Args:
        model: the file that ships.
        float_file: torch's export of the float model.
        session: policy; one thread is used whatever it says.
        progress: shows rounds.
        reason: why there is no float file.

    Raises:
        BadInputError: the runtime refuses a file.
    """
    files = (model,) if float_file is None else (model, float_file)
    own, *others = measure(
        files, config=session.config, seconds=_SECONDS, seed=0, progress=progress, min_rounds=_MIN_ROUNDS
    )
    plain = others[0] if others else None
    return BuildLatency(
        model_ms=own.median_ms,
        float_ms=None if plain is None else plain.median_ms,
        ratio=None if plain is None else own.median_ms / plain.median_ms,
        model_quartiles_ms=own.quartiles_ms,
        float_quartiles_ms=None if plain is None else plain.quartiles_ms,
        rounds=own.rounds,
        slower=plain is not None and is_slower(own, plain),
        reason=reason,
    )


def is_slower(own: Latency, plain: Latency) -> bool:
    """Whether a file is slower than another by more than noise.

    Its median and its fastest round are more than 5 % slower, its quartiles lie above the other's, and the
    difference can be felt. The fastest round is asked too, since other programs only ever add time, and more
    of it to the longer runs: on a machine that is shared two ways, medians alone show ratios that are far
    from those of a quiet one.
    """
    return (
        own.median_ms > _NOISE_RATIO * plain.median_ms
        and own.fastest_ms > _NOISE_RATIO * plain.fastest_ms
        and own.quartiles_ms[0] > plain.quartiles_ms[1]
        and own.fastest_ms - plain.fastest_ms > _FELT_MS
    )
