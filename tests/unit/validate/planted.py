"""Runtimes with a fault: honest answers of this process's onnxruntime, changed on the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from mixport.records.runtime import RuntimeAnswer, RuntimeInfo, RuntimeJob
from mixport.records.targets import SessionRules
from mixport.validate.run.session import open_session

Arrays = Mapping[str, np.ndarray]
Fault = Callable[[dict[str, np.ndarray], Arrays], None]


def honest(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
    """No fault."""


@dataclass(frozen=True)
class Planted:
    """Runs jobs in this process, then lets `fault` change the outputs of every run in place; it is told the
    run's inputs.

    Attributes:
        fault: changes outputs by name.
        policy: session policy to use in place of the one asked for.
        refuses: name of an output whose job is refused.
        calls: how many jobs each call had.
    """

    fault: Fault = honest
    policy: SessionRules | None = None
    refuses: str = ""
    calls: list[int] | None = None
    name: str = "planted"

    def run(
        self, jobs: Sequence[RuntimeJob], *, policy: SessionRules
    ) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
        if self.calls is not None:
            self.calls.append(len(jobs))
        answers: list[RuntimeAnswer] = []
        for job in jobs:
            if self.refuses in job.outputs:
                answers.append(RuntimeAnswer(runs=(), refused="this operator is too new"))
                continue
            session = open_session(onnx.ModelProto.FromString(job.model), policy=self.policy or policy)
            runs: list[dict[str, np.ndarray]] = []
            for feeds in job.feeds:
                arrays = session.run(list(job.outputs), dict(feeds))
                found = {name: array.copy() for name, array in zip(job.outputs, arrays, strict=True)}
                self.fault(found, feeds)
                runs.append(found)
            answers.append(RuntimeAnswer(runs=tuple(runs)))
        return RuntimeInfo(name="fakeort", version="9.9", cpu="abacus"), tuple(answers)
