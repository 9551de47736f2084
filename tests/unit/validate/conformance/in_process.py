"""ONNX Runtime in this process, and runtimes that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from mixport.records.errors import BadInputError
from mixport.records.runtime import RuntimeAnswer, RuntimeInfo, RuntimeJob
from mixport.records.targets import SessionRules
from mixport.validate.run.session import open_session, runtime_info

Outputs = Mapping[str, np.ndarray]


def unchanged(outputs: Outputs) -> Outputs:
    return outputs


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """Runs jobs here; `spoil` may change what comes back."""

    name: str = "native"
    spoil: Callable[[Outputs], Outputs] = unchanged

    def run(
        self, jobs: Sequence[RuntimeJob], *, policy: SessionRules
    ) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
        return runtime_info(), tuple(self._answer(job, policy) for job in jobs)

    def _answer(self, job: RuntimeJob, policy: SessionRules) -> RuntimeAnswer:
        try:
            session = open_session(onnx.ModelProto.FromString(job.model), policy=policy)
        except BadInputError as error:
            return RuntimeAnswer(runs=(), refused=str(error))
        names = list(job.outputs)
        return RuntimeAnswer(
            runs=tuple(
                self.spoil(dict(zip(names, session.run(names, dict(feeds)), strict=True)))
                for feeds in job.feeds
            )
        )
