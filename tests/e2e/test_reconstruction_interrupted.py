"""Reconstruction that is killed goes on behind the last finished unit, and gives the same bytes as one that
was not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.reconstruct_worker import ITERS

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

PATIENCE_S = 120.0


class Worker:
    """Starts quantising processes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, cache: Path, out: Path) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"cache": str(cache), "out": str(out)}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def finish(self, cache: Path, out: Path) -> dict[str, Any]:
        process = self.start(cache, out)
        wait_for_the_end(process)
        assert out.is_file(), "the process failed: see the captured output"
        return json.loads(out.read_text())


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_the_end(process: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(process):
        assert time.monotonic() < deadline, "the process does not end"
        time.sleep(0.005)


def units_of(cache: Path) -> dict[str, int]:
    """Finished units, and when each was written."""
    return {path.name: (path / "entry.json").stat().st_mtime_ns for path in (cache / "units").glob("*")}


@pytest.fixture(scope="module")
def worker(repository: Path) -> Iterator[Worker]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "tests.e2e.reconstruct_worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=repository
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield Worker(process)
        process.stdin.close()


@pytest.mark.sweep
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(worker: Worker, tmp_path: Path) -> None:
    started = time.monotonic()
    whole = worker.finish(tmp_path / "whole", tmp_path / "whole.json")
    seconds = time.monotonic() - started
    units = whole["units"]
    assert (whole["learned"], whole["reused"]) == (units * ITERS, 0)
    assert len(units_of(tmp_path / "whole")) == units
    moments = random.Random(1)
    interrupted = 0
    for number, how in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGINT)):
        cache = tmp_path / str(number)
        before = 1 + number % (units - 1)
        process = worker.start(cache, tmp_path / f"{number}-killed.json")
        while len(units_of(cache)) < before and is_alive(process):
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, seconds / (4 * units)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, how)
        wait_for_the_end(process)
        saved = units_of(cache)
        assert len(saved) >= before
        interrupted += not (cache / "quantized").exists()
        left = [path for path in (cache / ".tmp").rglob("*") if path.is_file()]
        # No name is left of the activations, so that their space is free again at once; an interrupt leaves
        # nothing at all.
        assert [path.name for path in left if path.name.startswith("activations")] == []
        assert how is signal.SIGKILL or left == []
        resumed = worker.finish(cache, tmp_path / f"{number}.json")
        assert resumed["sha256"] == whole["sha256"], f"{how.name} after {len(saved)} units"
        if (cache / "quantized").exists() and interrupted:
            assert {name: written for name, written in units_of(cache).items() if name in saved} == saved
        assert list((cache / ".tmp").glob("*")) == []
    assert interrupted >= 3, "most of the kills must hit a process that learns"


@pytest.mark.sweep
def test_only_what_was_not_finished_is_learned_again(worker: Worker, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = worker.finish(cache, tmp_path / "whole.json")
    units = sorted(units_of(cache).items(), key=lambda unit: unit[1])
    for kind in ("quantized", "lowered"):
        for path in (cache / kind).glob("*"):
            path.rename(tmp_path / f"{kind}-{path.name}")
    (cache / "units" / units[-1][0]).rename(tmp_path / "last")
    again = worker.finish(cache, tmp_path / "again.json")
    assert again["sha256"] == whole["sha256"]
    assert (again["learned"], again["reused"]) == (ITERS, (whole["units"] - 1) * ITERS)


def test_a_damaged_unit_is_learned_again(worker: Worker, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = worker.finish(cache, tmp_path / "whole.json")
    first = min(units_of(cache).items(), key=lambda unit: unit[1])[0]
    for path in (cache / "quantized").glob("*"):
        path.rename(tmp_path / path.name)
    tensors = cache / "units" / first / "unit.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    again = worker.finish(cache, tmp_path / "again.json")
    assert again["sha256"] == whole["sha256"]
    assert again["learned"] == ITERS
