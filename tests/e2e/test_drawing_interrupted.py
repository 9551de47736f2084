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

from mixport.calibration.drawn_images.check import verify_drawn_folder
from mixport.calibration.drawn_images.shards import read_manifest, shard_files

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

IMAGES = 20
BATCH = 2
SHARDS = IMAGES // BATCH
KILLS = 20
PATIENCE_S = 120.0


class Worker:
    """Starts drawing processes."""

    def __init__(self, process: subprocess.Popen[str], generator: Path) -> None:
        self.process, self.generator = process, generator

    def start(self, cache: Path, out: Path) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {
            "cache": str(cache),
            "generator": str(self.generator),
            "images": IMAGES,
            "batch": BATCH,
            "out": str(out),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def finish(self, cache: Path, out: Path) -> dict[str, Any]:
        return wait_for(self.start(cache, out), out)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(process: int, out: Path) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(process):
        assert time.monotonic() < deadline, "the drawing process does not end"
        time.sleep(0.01)
    assert out.is_file(), "the drawing process failed: see the captured output"
    return json.loads(out.read_text())


def family_of(cache: Path) -> Path | None:
    return next((path for path in (cache / "drawn").glob("*") if path.is_dir()), None)


def shards_of(cache: Path) -> int:
    folder = family_of(cache)
    return len(shard_files(folder)) if folder is not None else 0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Worker]:
    from tests.diffusion import tiny_stable_diffusion

    generator = tiny_stable_diffusion(tmp_path_factory.mktemp("generator") / "tiny")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(repository),
    }
    command = [sys.executable, "-m", "tests.e2e.draw_worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=repository
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield Worker(process, generator)
        process.stdin.close()


@pytest.mark.sweep
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(worker: Worker, tmp_path: Path) -> None:
    started = time.monotonic()
    whole = worker.finish(tmp_path / "whole", tmp_path / "whole.json")
    a_batch = (time.monotonic() - started) / (SHARDS + 1)
    assert whole["drawn"] == IMAGES
    folder = family_of(tmp_path / "whole")
    assert folder is not None
    manifest, _ = read_manifest(folder)
    assert manifest is not None
    moments = random.Random(3)
    interrupted = 0
    for kill in range(KILLS):
        cache = tmp_path / str(kill)
        before = moments.randrange(SHARDS)
        process = worker.start(cache, tmp_path / f"{kill}-killed.json")
        while shards_of(cache) < before and is_alive(process):
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, a_batch))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        while is_alive(process):
            time.sleep(0.001)
        saved = shards_of(cache)
        assert saved >= before
        interrupted += saved < SHARDS
        resumed = worker.finish(cache, tmp_path / f"{kill}.json")
        assert resumed["content_sha256"] == whole["content_sha256"], f"kill {kill} after {saved} shards"
        # Nothing is drawn again but the batch that was in the killed process's hands.
        assert resumed["drawn"] == IMAGES - saved * BATCH
        assert resumed["damaged"] == 0
        folder = family_of(cache)
        assert folder is not None
        again, _ = read_manifest(folder)
        assert again is not None
        assert again.content_sha256 == manifest.content_sha256
        assert not list(folder.glob(".new-*"))
        assert verify_drawn_folder(folder) == []
    assert interrupted >= KILLS // 2, "most of the kills must hit a process that draws"


def test_two_processes_draw_every_image_once(worker: Worker, tmp_path: Path) -> None:
    cache, outs = tmp_path / "cache", [tmp_path / "one.json", tmp_path / "two.json"]
    processes = [worker.start(cache, out) for out in outs]
    first, second = (wait_for(process, out) for process, out in zip(processes, outs, strict=True))
    assert first["content_sha256"] == second["content_sha256"]
    assert sorted([first["drawn"], second["drawn"]]) == [0, IMAGES]
    folder = family_of(cache)
    assert folder is not None
    assert verify_drawn_folder(folder) == []
