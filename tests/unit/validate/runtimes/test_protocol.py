"""The job folder and its answer: what is written is read back, and an answer that lies is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.validate.runtimes import protocol
from mixport.validate.runtimes.protocol import read_answer, write_job
from tests.unit.validate.runtimes.conftest import POLICY

JOBS = (RuntimeJob(model=b"m", feeds=[{"x": np.zeros(2, np.float32)}], outputs=("a", "b")),)


def good() -> dict[str, Any]:
    tensors = [
        {"name": "a", "dtype": "uint8", "shape": [2, 2], "offset": 0},
        {"name": "b", "dtype": "int64", "shape": [1], "offset": 64},
    ]
    return {
        "protocol": 1,
        "runtime": {"name": "r", "version": "1", "cpu": "c"},
        "answers": [{"runs": [tensors]}],
    }


def answered(folder: Path, document: Any, *, data: bytes = bytes(range(72))) -> Path:
    (folder / "answer.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "outputs.bin").write_bytes(data)
    return folder


def test_a_good_answer_is_read(tmp_path: Path) -> None:
    info, (answer,) = read_answer(answered(tmp_path, good()), JOBS, runtime="r")
    assert (info.name, info.version, info.cpu) == ("r", "1", "c")
    assert answer.runs[0]["a"].tolist() == [[0, 1], [2, 3]]
    assert answer.runs[0]["b"].tolist() == [int.from_bytes(bytes(range(64, 72)), "little")]


def test_arrays_outlive_the_folder(tmp_path: Path) -> None:
    _, (answer,) = read_answer(answered(tmp_path, good()), JOBS, runtime="r")
    (tmp_path / "outputs.bin").unlink()
    assert answer.runs[0]["a"].sum() == 6


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing tensor": (lambda d: d["answers"][0]["runs"][0].pop(), "lacks tensor 'b'"),
    "another tensor": (
        lambda d: d["answers"][0]["runs"][0].append({"name": "c", "dtype": "bool", "shape": [], "offset": 0}),
        "has tensor 'c'",
    ),
    "a tensor twice": (
        lambda d: d["answers"][0]["runs"][0].append(d["answers"][0]["runs"][0][0]),
        "names a tensor twice",
    ),
    "a negative side": (
        lambda d: d["answers"][0]["runs"][0][0].update(shape=[-1, 2]),
        "greater than or equal to 0",
    ),
    "sides that multiply to a wrap": (
        lambda d: d["answers"][0]["runs"][0][0].update(shape=[2**33, 2**31]),
        "reaches beyond",
    ),
    "a huge side": (lambda d: d["answers"][0]["runs"][0][0].update(shape=[10**30]), "reaches beyond"),
    "many axes": (lambda d: d["answers"][0]["runs"][0][0].update(shape=[1] * 99), "at most 16"),
    "a far offset": (
        lambda d: d["answers"][0]["runs"][0][1].update(offset=65),
        "reaches beyond the 72 bytes",
    ),
    "a negative offset": (
        lambda d: d["answers"][0]["runs"][0][1].update(offset=-8),
        "greater than or equal to 0",
    ),
    "a type that runs code": (lambda d: d["answers"][0]["runs"][0][0].update(dtype="object"), "dtype"),
    "a size as text": (lambda d: d["answers"][0]["runs"][0][0].update(shape=["2", 2]), "valid integer"),
    "no answer": (lambda d: d["answers"].clear(), "0 answers for 1 jobs"),
    "too many answers": (lambda d: d["answers"].append({"runs": []}), "2 answers for 1 jobs"),
    "too few runs": (lambda d: d["answers"][0]["runs"].clear(), "0 runs, asked for 1"),
    "refused and run": (lambda d: d["answers"][0].update(refused="no"), "both runs and a refusal"),
    "another protocol": (lambda d: d.update(protocol=2), "protocol"),
    "no runtime": (lambda d: d.pop("runtime"), "runtime"),
}


@pytest.mark.parametrize(("lie", "message"), LIES.values(), ids=LIES.keys())
def test_an_answer_that_lies_is_refused(
    lie: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    document = good()
    lie(document)
    with pytest.raises(RuntimeUnavailableError, match=message) as caught:
        read_answer(answered(tmp_path, document), JOBS, runtime="board")
    assert "runtime board" in str(caught.value) and caught.value.hint is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"protocol": 1}', "\x00" * 9])
def test_a_document_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    answered(tmp_path, good())
    (tmp_path / "answer.json").write_text(text, encoding="utf-8")
    with pytest.raises(RuntimeUnavailableError, match="no usable answer"):
        read_answer(tmp_path, JOBS, runtime="r")


@pytest.mark.parametrize("name", ["answer.json", "outputs.bin"])
def test_a_missing_file_and_a_link_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    answered(folder, good())
    (folder / name).replace(tmp_path / "elsewhere")
    with pytest.raises(RuntimeUnavailableError, match=f"there is no {name}"):
        read_answer(folder, JOBS, runtime="r")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeUnavailableError, match=f"there is no {name}"):
        read_answer(folder, JOBS, runtime="r")


@pytest.mark.parametrize(
    ("limit", "name"), [("MAX_DOCUMENT_BYTES", "answer.json"), ("MAX_OUTPUT_BYTES", "outputs.bin")]
)
def test_a_file_beyond_its_limit_is_not_read(
    limit: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(tmp_path, good())
    monkeypatch.setattr(protocol, limit, 10)
    with pytest.raises(RuntimeUnavailableError, match=f"{name} has .* allowed 10"):
        read_answer(tmp_path, JOBS, runtime="r")


def test_text_from_outside_is_one_line_without_control_characters(tmp_path: Path) -> None:
    document = good()
    document["runtime"]["cpu"] = "chip\x1b[31m\nred" + "x" * 1000
    document["answers"] = [{"refused": "no\x07way"}]
    info, (answer,) = read_answer(answered(tmp_path, document), JOBS, runtime="r")
    assert info.cpu.startswith("chip [31m redx") and len(info.cpu) <= 400
    assert (answer.runs, answer.refused) == ((), "no way")


def test_a_job_says_what_to_run(tmp_path: Path) -> None:
    x = np.arange(3, dtype=np.float32)
    names = write_job(tmp_path, (RuntimeJob(model=b"m", feeds=[{"x": x}], outputs=("y",)),), policy=POLICY)
    assert set(names) == {path.name for path in tmp_path.iterdir()}
    document = json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))
    assert document == {
        "protocol": 1,
        "policy": {"optimization_level": "all", "threads": 1, "config": {}},
        "jobs": [
            {
                "model": "0.onnx",
                "runs": [[{"name": "x", "dtype": "float32", "shape": [3], "offset": 0}]],
                "outputs": ["y"],
            }
        ],
    }
    assert (tmp_path / "inputs.bin").read_bytes() == x.tobytes()


def test_an_array_of_another_type_does_not_leave(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="input x has dtype complex64"):
        write_job(
            tmp_path,
            (RuntimeJob(model=b"m", feeds=[{"x": np.zeros(1, np.complex64)}], outputs=("y",)),),
            policy=POLICY,
        )
