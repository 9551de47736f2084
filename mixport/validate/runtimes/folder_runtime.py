"""Every runtime is a function that makes the answer to a job folder appear in that folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeAnswer, RuntimeInfo, RuntimeJob, RuntimeTimes, TimingRules
from mixport.records.targets import SessionRules
from mixport.validate.runtimes.protocol import read_answer, read_times, write_job

if TYPE_CHECKING:  # onnx, which most runtimes need nothing of
    from mixport.validate.runtimes.codes_at_ends import CodedJob


@dataclass(frozen=True, kw_only=True)
class FolderRuntime:
    """A runtime that works on job folders; implements `mixport.records.runtime.Runtime`.

    Attributes:
        name: as in `--runtime NAME`.
        execute: gets the job folder, runs it, and leaves answer.json and outputs.bin there; raises
            RuntimeUnavailableError.
        features: CPU features that the answer must name, or else the run shows nothing of what it is for.
        version: of the library, which the answer must name; any where None.
        emulated: its times are those of an emulator.
        provider: of an accelerator, which the runner opens in the place of the CPU; empty for the CPU.
        arithmetic: whose codes it computes: a name of mixport.arithmetic.definitions.DEFINITIONS.
        coded: gives each job codes at its ends, and the answer its floats back; None leaves jobs as they are.
    """

    name: str
    execute: Callable[[Path], None]
    features: tuple[str, ...] = ()
    version: str | None = None
    emulated: bool = False
    provider: Mapping[str, str] = field(default_factory=dict[str, str])
    arithmetic: str = "onnxruntime"
    coded: Callable[[RuntimeJob], CodedJob] | None = None

    def run(
        self, jobs: Sequence[RuntimeJob], *, policy: SessionRules
    ) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
        """Run every job in one process of the runtime; see `mixport.records.runtime.Runtime`."""
        coded = None if self.coded is None else [self.coded(job) for job in jobs]
        given = jobs if coded is None else [one.job for one in coded]
        with tempfile.TemporaryDirectory(prefix="mixport-job-") as name:
            folder = Path(name)
            write_job(folder, given, policy=policy, provider=self.provider)
            self.execute(folder)
            info, answers = read_answer(folder, given, runtime=self.name)
        if coded is not None:
            answers = tuple(one.answer(got) for one, got in zip(coded, answers, strict=True))
        lacking = [feature for feature in self.features if feature not in info.cpu.split()]
        if lacking:
            raise RuntimeUnavailableError(
                f"runtime {self.name} runs on a processor without {lacking[0]} ({info.cpu})",
                hint=f"mixport runtimes install {self.name}",
            )
        if self.version not in (None, info.version):
            raise RuntimeUnavailableError(
                f"runtime {self.name} ran {info.name} {info.version}, not {self.version}",
                hint=f"mixport runtimes install {self.name}",
            )
        return info, answers

    def time(
        self, jobs: Sequence[RuntimeJob], *, policy: SessionRules, timing: TimingRules
    ) -> tuple[RuntimeInfo, tuple[RuntimeTimes, ...]]:
        """Time every job's model on its first feed, in one process of the runtime, rounds interleaved.

        Raises:
            RuntimeUnavailableError: the runtime is emulated, does not start, breaks off, or has a runner that
                knows no timing.
        """
        if self.emulated:
            raise RuntimeUnavailableError(
                f"runtime {self.name} is emulated: its times say nothing of a processor",
                hint="--runtime native, wasm, or ssh:HOST",
            )
        with tempfile.TemporaryDirectory(prefix="mixport-job-") as name:
            folder = Path(name)
            write_job(folder, jobs, policy=policy, timing=timing)
            self.execute(folder)
            return read_times(folder, jobs, runtime=self.name)
