"""Runtimes that are always here: native, and any command line."""

from __future__ import annotations

import ast
import sys

import numpy as np
import pytest

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.records.runtime import Runtime, RuntimeJob
from mixport.records.targets import SessionRules
from mixport.validate.runtimes import local, open_runtimes
from mixport.validate.runtimes.pins import RUNNER
from tests.unit.validate.runtimes.conftest import POLICY, quantised

COMMAND = f"command:{sys.executable} {{runner}} {{job}}"


@pytest.mark.parametrize("name", ["native", COMMAND])
def test_jobs_run_and_a_refused_model_does_not_stop_the_others(
    name: str, jobs: tuple[RuntimeJob, ...]
) -> None:
    runtime: Runtime
    (runtime,) = open_runtimes([name])
    info, answers = runtime.run(jobs, policy=POLICY)
    assert runtime.name == name and info.name == "onnxruntime" and info.version[0].isdigit() and info.cpu
    for job, answer in ((jobs[0], answers[0]), (jobs[2], answers[2])):
        assert answer.refused == ""
        for feeds, found in zip(job.feeds, answer.runs, strict=True):
            assert found["y"].dtype == np.uint8
            np.testing.assert_array_equal(found["y"], quantised(np.asarray(feeds["x"])))
    assert answers[1].runs == () and "Protobuf" in answers[1].refused


def test_a_missing_input_is_a_refusal(quantiser: bytes) -> None:
    _, (answer,) = local.open_native().run(
        (RuntimeJob(model=quantiser, feeds=[{}], outputs=("y",)),), policy=POLICY
    )
    assert answer.runs == () and "x" in answer.refused


def test_the_policy_reaches_the_session(quantiser: bytes) -> None:
    x = np.zeros((1, 4), np.float32)
    jobs = (RuntimeJob(model=quantiser, feeds=[{"x": x}], outputs=("y",)),)
    policy = SessionRules(optimization_level="basic", threads=1, config={"k" * 5000: "1"})
    _, (answer,) = local.open_native().run(jobs, policy=policy)
    assert "config" in answer.refused.lower()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("false {job}", "exit code 1"),
        ("true {job}", "there is no answer.json"),
        ("no-such-program {job}", "does not start"),
        (
            f"{sys.executable} -c 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)' {{job}}",
            "signal 11",
        ),
        (
            f"{sys.executable} -c 'print(\"the board is on fire\"); raise SystemExit(3)' {{job}}",
            "exit code 3: the board is on fire",
        ),
    ],
)
def test_a_command_that_breaks_off_is_told(line: str, message: str, jobs: tuple[RuntimeJob, ...]) -> None:
    (runtime,) = open_runtimes([f"command:{line}"])
    with pytest.raises(RuntimeUnavailableError, match=message):
        runtime.run(jobs, policy=POLICY)


@pytest.mark.parametrize(
    "name",
    [
        "command:",
        "command:python3 runner.py",
        "command:'unfinished {job}",
        "ssh:",
        "ssh:-oProxyCommand=x",
        "ssh:a b",
        "toaster",
    ],
)
def test_a_name_of_a_wrong_form_is_refused(name: str) -> None:
    with pytest.raises(BadInputError) as caught:
        open_runtimes([name])
    assert caught.value.hint is not None


def test_a_feature_that_the_processor_lacks_is_an_error(jobs: tuple[RuntimeJob, ...]) -> None:
    from dataclasses import replace

    with pytest.raises(RuntimeUnavailableError, match="without sixteen-bit-bytes"):
        replace(local.open_native(), features=("sixteen-bit-bytes",)).run(jobs, policy=POLICY)


def test_the_runner_is_python_3_9_and_imports_nothing_of_mixport() -> None:
    tree = ast.parse(RUNNER.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert outside == {"numpy", "onnxruntime", "onnxruntime_qnn"}
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert "onnxruntime_qnn" not in top, "read where a job asks for it alone"
