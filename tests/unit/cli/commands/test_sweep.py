"""What mixport sweep shows, and its exit codes; the builds themselves are replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixport.cli.program import run
from mixport.pipeline.options.train_options import SweepOptions
from mixport.pipeline.training import sweep
from mixport.pipeline.training.sweep import Sweep, SweepRow

Capture = pytest.CaptureFixture[str]

ROW = SweepRow(
    scheme="w8a8",
    iters=0,
    bundle="out/w8a8",
    size_bytes=1234,
    top1=91.25,
    top1_float=92.0,
    agreement=0.98765,
    sqnr_db=20.25,
    verdict="exact",
    mismatches=0,
)
BARE = SweepRow(
    scheme="w2a4",
    iters=500,
    bundle="out/w2a4-500",
    size_bytes=567,
    top1=None,
    top1_float=None,
    agreement=None,
    sqnr_db=None,
    verdict="mismatch",
    mismatches=3,
)


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SweepOptions]:
    asked: list[SweepOptions] = []

    def run_sweep(options: SweepOptions, **_: Any) -> Sweep:
        asked.append(options)
        failures = ("w2a4: validation found a mismatch",) if "w2a4" in options.schemes else ()
        return Sweep(path=Path("out"), model=options.model, rows=(ROW, BARE), failures=failures)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    return asked


def test_a_row_for_each_file(capsys: Capture) -> None:
    assert run(["sweep", "a:b", "--schemes", "w8a8"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines() if line.strip().startswith(("w8a8", "w2a4"))]
    assert lines[0] == ["w8a8", "0", "1234", "91.25", "%", "0.9877", "20.2", "dB", "exact"]
    assert lines[1] == ["w2a4", "500", "567", "mismatch"], "what was not measured is empty"
    assert "table and plot: out/sweep.json, out/sweep.svg" in captured.err


def test_a_failure_is_told_and_ends_with_3(capsys: Capture) -> None:
    assert run(["sweep", "a:b", "--schemes", "w8a8,w2a4", "--json"]) == 3
    captured = capsys.readouterr()
    assert "error: w2a4: validation found a mismatch" in captured.err
    found = json.loads(captured.out)
    assert found["failures"] == ["w2a4: validation found a mismatch"]
    assert [row["scheme"] for row in found["rows"]] == ["w8a8", "w2a4"]


@pytest.mark.parametrize(
    "words",
    [
        ["--schemes", "w8a8,w4a4", "--iters", "0,500"],
        ["--schemes", "w8a8", "--schemes", "w4a4", "--iters", "0", "--iters", "500"],
    ],
)
def test_lists_have_commas_or_are_repeated(words: list[str], given: list[SweepOptions]) -> None:
    assert run(["sweep", "a:b", *words]) == 0
    assert (given[0].schemes, given[0].iters) == (("w8a8", "w4a4"), (0, 500))


def test_the_file_s_table_is_read(given: list[SweepOptions]) -> None:
    Path("mixport.toml").write_text('[sweep]\nschemes = ["w8a8"]\nseed = 4\n')
    assert run(["sweep", "a:b", "--seed", "5"]) == 0
    assert (given[0].schemes, given[0].seed) == (("w8a8",), 5)


def test_a_mistake_is_answered_before_any_work(given: list[SweepOptions], capsys: Capture) -> None:
    assert run(["sweep", "a:b", "--iters", "some"]) == 2
    assert "error: " in capsys.readouterr().err
    assert given == []
