"""The job folder: what goes to a runtime and what comes back, the same for every runtime. docs/runtimes.md
describes it.

Two files of ours carry everything but the models: job.json with inputs.bin, and answer.json with outputs.bin
comes back. The answer names no files, so that it cannot lead anywhere; it comes from outside, so that every
size and name in it is checked.
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.records.runtime import RuntimeAnswer, RuntimeInfo, RuntimeJob, RuntimeTimes, TimingRules
from mixport.records.targets import SessionRules
from mixport.validate.runtimes.pins import RUNNER, WEB_RUNNER

PROTOCOL = 1
JOB, INPUTS, ANSWER, OUTPUTS = "job.json", "inputs.bin", "answer.json", "outputs.bin"

MAX_DOCUMENT_BYTES = 256 << 20
"""Largest answer.json."""
MAX_OUTPUT_BYTES = 32 << 30
"""Largest outputs.bin."""

_ALIGNMENT = 64
_MAX_AXES = 16
_MAX_TEXT = 400

Dtype = Literal[
    "float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "bool"
]
DTYPES: tuple[str, ...] = (
    "float32",
    "float64",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Tensor(_Part):
    name: str = Field(max_length=4096)
    dtype: Dtype
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=_MAX_AXES)
    offset: int = Field(ge=0)


class _Answer(_Part):
    runs: list[list[_Tensor]] | None = None
    times_ms: list[Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] | None = None
    refused: str = ""


class _Runtime(_Part):
    name: str
    version: str
    cpu: str


class _Document(_Part):
    protocol: Literal[1]
    runtime: _Runtime
    answers: list[_Answer]


def write_job(
    folder: Path,
    jobs: Sequence[RuntimeJob],
    *,
    policy: SessionRules,
    timing: TimingRules | None = None,
    provider: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Fill an empty folder with jobs and both runners.

    Args:
        folder: existing and empty.
        jobs: models, inputs and the outputs wanted.
        policy: session policy.
        timing: ask for the times of the models, on the first run of each job, in the place of its outputs.
        provider: of an accelerator that the whole of each model has to run on; empty for the CPU.

    Returns:
        names of the files that a runner needs, the runners among them.

    Raises:
        BadInputError: an array of a type that the protocol does not know.
    """
    names = [JOB, INPUTS, RUNNER.name, WEB_RUNNER.name]
    documents: list[dict[str, object]] = []
    with (folder / INPUTS).open("wb") as sink:
        for number, job in enumerate(jobs):
            model = f"{number}.onnx"
            (folder / model).write_bytes(job.model)
            names.append(model)
            runs = [
                [_write_tensor(name, array, sink) for name, array in feeds.items()] for feeds in job.feeds
            ]
            documents.append({"model": model, "runs": runs, "outputs": list(job.outputs)})
    document = {"protocol": PROTOCOL, "policy": policy.model_dump(mode="json"), "jobs": documents}
    if provider:
        document["provider"] = dict(provider)
    if timing is not None:
        document["timing"] = asdict(timing)
    (folder / JOB).write_text(json.dumps(document), encoding="utf-8")
    for runner in (RUNNER, WEB_RUNNER):
        shutil.copyfile(runner, folder / runner.name)
    return tuple(names)


def read_answer(
    folder: Path, jobs: Sequence[RuntimeJob], *, runtime: str
) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
    """Read and check an answer.

    Args:
        folder: of the job, or where the two files of the answer were copied.
        jobs: what was asked.
        runtime: name, for messages.

    Returns:
        who computed, and one answer a job. Arrays are read-only maps of outputs.bin, which may be deleted
        afterwards.

    Raises:
        RuntimeUnavailableError: no answer, or one that does not answer what was asked.
    """
    with _checking(runtime):
        document = _document(folder, jobs)
        data = _map(folder / OUTPUTS)
        return _info(document), tuple(
            _answer(job, answer, data) for job, answer in zip(jobs, document.answers, strict=True)
        )


def read_times(
    folder: Path, jobs: Sequence[RuntimeJob], *, runtime: str
) -> tuple[RuntimeInfo, tuple[RuntimeTimes, ...]]:
    """Read and check the answer to a job that asked for times; see `read_answer`.

    Raises:
        RuntimeUnavailableError: no answer, or one that does not hold the times of every model in as many
            rounds.
    """
    with _checking(runtime):
        document = _document(folder, jobs)
        times = tuple(_times(answer) for answer in document.answers)
        counts = {len(one.times_ms) for one in times if not one.refused}
        if len(counts) > 1:
            raise ValueError(
                f"models were timed in {min(counts)} and {max(counts)} rounds, allowed equal numbers"
            )
        return _info(document), times


def _write_tensor(name: str, array: NDArray[np.generic], sink: Any) -> dict[str, object]:
    kind = str(array.dtype.newbyteorder("="))
    if kind not in DTYPES:
        raise BadInputError(f"input {name} has dtype {array.dtype}, a job may hold {', '.join(DTYPES)}")
    sink.write(b"\0" * (-sink.tell() % _ALIGNMENT))
    entry: dict[str, object] = {
        "name": name,
        "dtype": kind,
        "shape": list(array.shape),
        "offset": sink.tell(),
    }
    sink.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return entry


def _read_document(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"there is no {path.name}")
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, allowed {MAX_DOCUMENT_BYTES}")
    return path.read_bytes()


def _map(path: Path) -> memoryview:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"there is no {path.name}")
    size = path.stat().st_size
    if size > MAX_OUTPUT_BYTES:
        raise ValueError(f"{path.name} has {size} bytes, allowed {MAX_OUTPUT_BYTES}")
    if size == 0 or sys.platform == "win32":  # there, a mapped file cannot be deleted
        return memoryview(path.read_bytes())
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def _checking(runtime: str) -> Generator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _bad(runtime, f"{where}: {first['msg']}") from error
    except (ValueError, OSError) as error:
        raise _bad(runtime, str(error)) from error


def _document(folder: Path, jobs: Sequence[RuntimeJob]) -> _Document:
    document = _Document.model_validate_json(_read_document(folder / ANSWER))
    if len(document.answers) != len(jobs):
        raise ValueError(f"it has {len(document.answers)} answers for {len(jobs)} jobs")
    return document


def _info(document: _Document) -> RuntimeInfo:
    info = document.runtime
    return RuntimeInfo(name=_plain(info.name), version=_plain(info.version), cpu=_plain(info.cpu))


def _times(answer: _Answer) -> RuntimeTimes:
    if answer.refused:
        return RuntimeTimes(times_ms=(), refused=_plain(answer.refused, most=4000))
    if answer.times_ms is None or len(answer.times_ms) < 2:
        raise ValueError("an answer has no times: its runner may be of a version that does not time")
    return RuntimeTimes(times_ms=tuple(answer.times_ms))


def _answer(job: RuntimeJob, answer: _Answer, data: memoryview) -> RuntimeAnswer:
    if answer.runs is None:
        return RuntimeAnswer(
            runs=(), refused=_plain(answer.refused, most=4000) or "refused without a message"
        )
    if answer.refused:
        raise ValueError("an answer has both runs and a refusal")
    if len(answer.runs) != len(job.feeds):
        raise ValueError(f"an answer has {len(answer.runs)} runs, asked for {len(job.feeds)}")
    return RuntimeAnswer(runs=tuple(_run(job.outputs, run, data) for run in answer.runs))


def _run(
    outputs: Sequence[str], run: Sequence[_Tensor], data: memoryview
) -> Mapping[str, NDArray[np.generic]]:
    found = {tensor.name: tensor for tensor in run}
    if len(found) != len(run) or found.keys() != set(outputs):
        missing = sorted(set(outputs) - found.keys())
        other = sorted(found.keys() - set(outputs))
        what = (
            f"lacks tensor {missing[0]!r}"
            if missing
            else f"has tensor {_plain(other[0])!r}"
            if other
            else "names a tensor twice"
        )
        raise ValueError(
            f"a run {what}, asked for {', '.join(outputs[:8])}{' ...' if len(outputs) > 8 else ''}"
        )
    return {name: _array(found[name], data) for name in outputs}


def _array(tensor: _Tensor, data: memoryview) -> NDArray[np.generic]:
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    size = math.prod(tensor.shape) * dtype.itemsize  # Python's integers: no shape makes it wrap
    if tensor.offset + size > len(data):
        raise ValueError(
            f"tensor {tensor.name!r} of {size} bytes at {tensor.offset} reaches beyond the "
            f"{len(data)} bytes of {OUTPUTS}"
        )
    raw = np.frombuffer(data[tensor.offset : tensor.offset + size], np.uint8)
    if tensor.dtype == "bool":
        return (raw != 0).reshape(tensor.shape)
    return raw.view(dtype).reshape(tensor.shape).astype(tensor.dtype, copy=False)


def _plain(text: str, *, most: int = _MAX_TEXT) -> str:
    """Text from outside as one line without control characters: it is printed on terminals."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:most]).split())


def _bad(runtime: str, reason: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"runtime {runtime} gave no usable answer: {reason}", hint="docs/runtimes.md describes the answer"
    )
