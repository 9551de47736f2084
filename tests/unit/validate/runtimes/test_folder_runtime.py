"""A runtime is a function on a folder: what it finds there, what must come back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeInfo, RuntimeJob, TimingRules
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from tests.unit.validate.runtimes.conftest import POLICY, quantised

RULES = TimingRules(warmup=0, min_rounds=2, max_rounds=2, seconds=0.0)
RUNTIME = {"name": "fakeort", "version": "9.9", "cpu": "abacus avx2"}


class Fake:
    """Answers the first run of the first job as it should, and keeps what it saw."""

    def __init__(self, answers: Callable[[Path], Any] | None = None) -> None:
        self.answers, self.folder, self.job = answers, Path(), {}

    def __call__(self, folder: Path) -> None:
        self.folder = folder
        self.job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.files = sorted(path.name for path in folder.iterdir())
        entry = self.job["jobs"][0]["runs"][0][0]
        raw = (folder / "inputs.bin").read_bytes()
        x = np.frombuffer(raw, "<f4", 24, entry["offset"]).reshape(entry["shape"])
        (folder / "outputs.bin").write_bytes(quantised(x).tobytes())
        y = {"name": "y", "dtype": "uint8", "shape": entry["shape"], "offset": 0}
        answers = [{"runs": [[y]]}] if self.answers is None else self.answers(folder)
        document = {"protocol": 1, "runtime": RUNTIME, "answers": answers}
        (folder / "answer.json").write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def job(jobs: tuple[RuntimeJob, ...]) -> tuple[RuntimeJob, ...]:
    return (replace(jobs[0], feeds=jobs[0].feeds[:1]),)


def test_the_answer_outlives_the_folder(job: tuple[RuntimeJob, ...]) -> None:
    fake = Fake()
    info, (answer,) = FolderRuntime(name="fake", execute=fake).run(job, policy=POLICY)
    assert info == RuntimeInfo(**RUNTIME) and answer.refused == ""
    expected = quantised(np.asarray(job[0].feeds[0]["x"]))
    np.testing.assert_array_equal(answer.runs[0]["y"], expected)
    assert len(np.unique(expected)) > 9 and not fake.folder.exists()


def test_the_folder_holds_the_job_and_both_runners(job: tuple[RuntimeJob, ...]) -> None:
    fake = Fake()
    FolderRuntime(name="fake", execute=fake).run(job, policy=POLICY)
    assert fake.files == ["0.onnx", "inputs.bin", "job.json", "runner.mjs", "runner.py"]
    assert fake.job["policy"] == {"optimization_level": "all", "threads": 1, "config": {}}
    assert "timing" not in fake.job and fake.job["jobs"][0]["outputs"] == ["y"]


def test_an_error_of_the_runtime_passes_through_and_leaves_nothing(job: tuple[RuntimeJob, ...]) -> None:
    seen: list[Path] = []

    def fail(folder: Path) -> None:
        seen.append(folder)
        raise RuntimeUnavailableError("the board is on fire")

    with pytest.raises(RuntimeUnavailableError, match="the board is on fire"):
        FolderRuntime(name="fake", execute=fail).run(job, policy=POLICY)
    assert len(seen) == 1 and not seen[0].exists()


def test_a_runtime_that_leaves_no_answer_is_named(job: tuple[RuntimeJob, ...]) -> None:
    runtime = FolderRuntime(name="fake", execute=lambda folder: None)
    message = r"runtime fake gave no usable answer: there is no answer\.json"
    with pytest.raises(RuntimeUnavailableError, match=message):
        runtime.run(job, policy=POLICY)
    with pytest.raises(RuntimeUnavailableError, match=message):
        runtime.time(job, policy=POLICY, timing=RULES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ("avx2",)}, ""),
        ({"features": ("avx2", "vnni")}, r"runtime fake runs on a processor without vnni \(abacus avx2\)"),
        # A part of a word is no feature.
        ({"features": ("avx",)}, "without avx "),
        ({"version": "9.9"}, ""),
        ({"version": "9.8"}, r"runtime fake ran fakeort 9\.9, not 9\.8"),
    ],
    ids=str,
)
def test_features_and_version_are_those_asked_for(
    changes: dict[str, Any], message: str, job: tuple[RuntimeJob, ...]
) -> None:
    runtime = replace(FolderRuntime(name="fake", execute=Fake()), **changes)
    if not message:
        assert runtime.run(job, policy=POLICY)[0].version == "9.9"
        return
    with pytest.raises(RuntimeUnavailableError, match=message) as caught:
        runtime.run(job, policy=POLICY)
    assert caught.value.hint == "mixport runtimes install fake"


def test_times_are_asked_for_and_read(job: tuple[RuntimeJob, ...]) -> None:
    fake = Fake(lambda folder: [{"times_ms": [1.5, 2.5]}])
    info, (times,) = FolderRuntime(name="fake", execute=fake).time(job, policy=POLICY, timing=RULES)
    assert info.name == "fakeort" and times.times_ms == (1.5, 2.5)
    assert fake.job["timing"] == {"warmup": 0, "min_rounds": 2, "max_rounds": 2, "seconds": 0.0}


def test_an_emulated_runtime_is_not_even_started_for_times(job: tuple[RuntimeJob, ...]) -> None:
    fake = Fake()
    runtime = FolderRuntime(name="fake", execute=fake, emulated=True)
    with pytest.raises(RuntimeUnavailableError, match="runtime fake is emulated") as caught:
        runtime.time(job, policy=POLICY, timing=RULES)
    assert fake.job == {} and caught.value.hint == "--runtime native, wasm, or ssh:HOST"
