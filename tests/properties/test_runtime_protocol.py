"""Any arrays survive the way to the runner's side and back, and no answer of random fields does harm."""

from __future__ import annotations

import json
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.records.targets import SessionRules
from mixport.validate.runtimes import runner
from mixport.validate.runtimes.protocol import DTYPES, read_answer, write_job

POLICY = SessionRules(optimization_level="all", threads=1)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: npst.arrays(name, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
FEEDS = st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["runs", "refused", "name", "shape", "offset", "dtype"]), inner)
    ),
    max_leaves=12,
)


def echo(folder: Path) -> None:
    """Answer a job with its own inputs, by the runner's reading and writing."""
    document = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    answers: list[dict[str, Any]] = []
    with (folder / "inputs.bin").open("rb") as source, (folder / "outputs.bin").open("wb") as sink:
        for job in document["jobs"]:
            runs = [
                [runner.write(tensor["name"], runner.read(tensor, source), sink) for tensor in run]
                for run in job["runs"]
            ]
            answers.append({"runs": runs})
    runtime = {"name": "echo", "version": "1", "cpu": "none"}
    (folder / "answer.json").write_text(
        json.dumps({"protocol": 1, "runtime": runtime, "answers": answers}), encoding="utf-8"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(FEEDS, min_size=1, max_size=3))
def test_arrays_survive_the_way_there_and_back(runs: list[dict[str, np.ndarray]]) -> None:
    jobs = [RuntimeJob(model=b"m", feeds=[feeds], outputs=tuple(feeds)) for feeds in runs]
    with tempfile.TemporaryDirectory() as name:
        write_job(Path(name), jobs, policy=POLICY)
        echo(Path(name))
        _, answers = read_answer(Path(name), jobs, runtime="echo")
    for feeds, answer in zip(runs, answers, strict=True):
        for key, array in feeds.items():
            found = answer.runs[0][key]
            assert found.dtype == array.dtype and found.shape == array.shape
            assert found.tobytes() == array.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.lists(JSON, max_size=2) | JSON)
def test_a_random_answer_is_read_or_refused(answers: Any) -> None:
    jobs = [RuntimeJob(model=b"m", feeds=[{}], outputs=("y",))]
    document = {"protocol": 1, "runtime": {"name": "r", "version": "1", "cpu": "c"}, "answers": answers}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "answer.json").write_text(json.dumps(document), encoding="utf-8")
        (Path(name) / "outputs.bin").write_bytes(bytes(16))
        try:
            read_answer(Path(name), jobs, runtime="r")
        except RuntimeUnavailableError as error:
            assert "runtime r" in str(error)


@given(st.integers(0, 200))
def test_arrays_start_at_aligned_places(before: int) -> None:
    sink = BytesIO(bytes(before))
    sink.seek(before)
    entry = runner.write("x", np.arange(3, dtype=np.int64), sink)
    assert entry["offset"] % 64 == 0 and entry["offset"] - before < 64
