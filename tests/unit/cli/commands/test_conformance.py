from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mixport.cli.program import run
from mixport.records.errors import ExitCode
from mixport.validate import runtimes
from mixport.validate.conformance.measured import read_result
from tests.unit.validate.conformance.in_process import InProcess

FEW = ["--form", "mul", "--form", "max-pool", "--form", "add.ties"]


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        runtimes, "open_runtimes", lambda names, arithmetic: tuple(InProcess(name=name) for name in names)
    )


def test_a_run_that_worked_ends_with_0_although_a_known_form_differs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["conformance", *FEW, "--quiet"]) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("add.ties") and "differ" in line for line in lines)
    assert any(
        line.split()[:3] == ["carriers", "2", "12"] and line.rstrip().endswith("all exact") for line in lines
    )


def test_a_form_that_lowering_writes_must_be_exact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = InProcess(
        spoil=lambda outputs: {
            name: array ^ np.uint8(1) for name, array in outputs.items() if array.dtype == np.uint8
        }
    )
    monkeypatch.setattr(runtimes, "open_runtimes", lambda names, arithmetic: (wrong,))
    assert run(["conformance", "--form", "max-pool", "--json"]) == ExitCode.FAILED
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failed"] == ["max-pool"]
    assert "form max-pool differs" in captured.err


def test_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["conformance", *FEW, "--out", str(tmp_path / "one.json"), "--json", "--quiet"]) == ExitCode.DONE
    )
    document = json.loads(capsys.readouterr().out)
    result = read_result(tmp_path / "one.json")
    assert document["results"] == [result.document()]
    assert document["exact"] == sorted(result.exact_forms) == ["max-pool", "mul"]
    version = result.runtime.version
    assert (
        run(
            [
                "conformance",
                *FEW,
                "--runtime",
                "a",
                "--runtime",
                "command:b c",
                "--out",
                str(tmp_path / "all"),
                "--quiet",
            ]
        )
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        f"a-{version}.json",
        f"command-b-c-{version}.json",
    ]


def test_one_file_for_two_runtimes_is_refused(tmp_path: Path) -> None:
    arguments = ["conformance", *FEW, "--runtime", "a", "--runtime", "b", "--out", str(tmp_path / "x.json")]
    assert run(arguments) == ExitCode.USAGE


def test_the_forms_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["conformance", "--list", "--json", "--form", "conv."]) == ExitCode.DONE
    listed = json.loads(capsys.readouterr().out)
    assert {
        "name": "conv.w4.int4",
        "family": "layers",
        "emitted": True,
        "about": "Conv, INT4 weights cast to int8",
    } in listed


def test_a_missing_runtime_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert run(["conformance", "--runtime", "arm64", "--form", "mul"]) == ExitCode.USER
    assert "mixport runtimes install arm64" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file/result.json", "file/folder"])
def test_a_folder_that_cannot_be_made_is_told_before_the_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run(["conformance", *FEW, "--out", str(tmp_path / name)]) == ExitCode.USER
    assert "cannot be written" in capsys.readouterr().err
