"""Timing: equal rounds of every model, in one process of the runtime, and an answer that lies is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob, TimingRules
from mixport.validate.runtimes import local
from mixport.validate.runtimes.protocol import read_times, write_job
from tests.unit.validate.runtimes.conftest import POLICY

RULES = TimingRules(warmup=1, min_rounds=4, max_rounds=9, seconds=0.0)


def test_the_rounds_are_those_asked_for(jobs: tuple[RuntimeJob, ...]) -> None:
    info, (first, broken, last) = local.open_native().time(jobs, policy=POLICY, timing=RULES)
    assert info.name == "onnxruntime"
    assert len(first.times_ms) == len(last.times_ms) == 4
    assert all(time > 0 for time in (*first.times_ms, *last.times_ms))
    assert broken.times_ms == () and "Protobuf" in broken.refused


def test_a_long_budget_ends_at_the_most_rounds(jobs: tuple[RuntimeJob, ...]) -> None:
    _, (first, _, last) = local.open_native().time(jobs, policy=POLICY, timing=replace(RULES, seconds=60.0))
    assert len(first.times_ms) == len(last.times_ms) == 9


def test_an_emulated_runtime_is_not_timed(jobs: tuple[RuntimeJob, ...]) -> None:
    with pytest.raises(RuntimeUnavailableError, match="is emulated: its times say nothing of a processor"):
        replace(local.open_native(), emulated=True).time(jobs, policy=POLICY, timing=RULES)


def test_the_job_says_what_is_asked(tmp_path: Path, jobs: tuple[RuntimeJob, ...]) -> None:
    write_job(tmp_path, jobs, policy=POLICY, timing=RULES)
    asked = json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))
    assert asked["timing"] == {"warmup": 1, "min_rounds": 4, "max_rounds": 9, "seconds": 0.0}


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "outputs in the place of times": (
        lambda d: d["answers"].__setitem__(1, {"runs": []}),
        "may be of a version that does not time",
    ),
    "one time": (lambda d: d["answers"].__setitem__(1, {"times_ms": [1.0]}), "has no times"),
    "unequal rounds": (lambda d: d["answers"][1]["times_ms"].append(1.0), "in 2 and 3 rounds"),
    "a negative time": (lambda d: d["answers"][0].update(times_ms=[-1.0, 1.0]), "greater than or equal to 0"),
    "a time as text": (lambda d: d["answers"][0].update(times_ms=["1", 1.0]), "valid number"),
    "too few answers": (lambda d: d["answers"].pop(), "1 answers for 2 jobs"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_lies_is_refused(lie: str, tmp_path: Path, jobs: tuple[RuntimeJob, ...]) -> None:
    change, message = LIES[lie]
    document: dict[str, Any] = {
        "protocol": 1,
        "runtime": {"name": "r", "version": "1", "cpu": "c"},
        "answers": [{"times_ms": [1.0, 2.5]}, {"times_ms": [3, 4]}],
    }
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    _, times = read_times(tmp_path, jobs[:2], runtime="r")
    assert [one.times_ms for one in times] == [(1.0, 2.5), (3.0, 4.0)]
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RuntimeUnavailableError, match=message):
        read_times(tmp_path, jobs[:2], runtime="r")
