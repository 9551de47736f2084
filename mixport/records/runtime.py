"""Where validation, conformance and the runtimes meet: jobs go to a runtime, arrays come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixport.records.targets import SessionRules


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """Who computed: name, version, and the CPU with the features that select integer kernels."""

    name: str
    version: str
    cpu: str


@dataclass(frozen=True, kw_only=True)
class RuntimeJob:
    """One model to run.

    Attributes:
        model: a serialised ONNX file.
        feeds: one mapping a run, arrays by input name.
        outputs: graph outputs wanted, by name.
    """

    model: bytes
    feeds: Sequence[Mapping[str, NDArray[np.generic]]]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RuntimeAnswer:
    """What a runtime made of one job.

    Attributes:
        runs: one mapping a feed, arrays by output name; empty where the model was refused.
        refused: the runtime's own message where it did not load or run the model, empty otherwise.
    """

    runs: tuple[Mapping[str, NDArray[np.generic]], ...]
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class TimingRules:
    """How models are timed against each other, in rounds that run each of them once.

    Attributes:
        warmup: runs of each model that do not count.
        min_rounds: that are run whatever the budget, at least 2.
        max_rounds: that are run at most.
        seconds: budget of the rounds, without loading.
    """

    warmup: int
    min_rounds: int
    max_rounds: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RuntimeTimes:
    """How long a runtime took for one model.

    Attributes:
        times_ms: one inference each, milliseconds, in the order of the rounds; empty where the model was
            refused.
        refused: the runtime's own message where it did not load or run the model, empty otherwise.
    """

    times_ms: tuple[float, ...]
    refused: str = ""


class Runtime(Protocol):
    """A runtime on this machine, emulated, or elsewhere: models and inputs go there, arrays come back."""

    @property
    def name(self) -> str:
        """As in `--runtime NAME`."""
        ...

    def run(
        self, jobs: Sequence[RuntimeJob], *, policy: SessionRules
    ) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
        """Run every job in one process of the runtime; one answer a job, in order.

        Raises:
            RuntimeUnavailableError: the runtime is not installed, does not start, or breaks off.
        """
        ...
