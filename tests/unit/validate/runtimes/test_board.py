"""ssh:HOST with an ssh and an scp that work on this machine, and with ones that lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.validate.runtimes import open_runtimes
from tests.unit.validate.runtimes.conftest import POLICY, quantised

#: Drops options and the host, and runs the command in a shell, as sshd does.
SSH = """#!/bin/sh
while [ "$1" != "--" ]; do [ "$1" = "-o" ] && echo "$2" >> "$LOG"; shift; done
shift; echo "host $1" >> "$LOG"; shift
exec sh -c "$*"
"""
SCP = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
shift
for last; do :; done
for name; do [ "$name" = "$last" ] || cp "${name#board:}" "${last#board:}" || exit 1; done
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"ssh": SSH, "scp": SCP, "python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}.items():
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    (tmp_path / "remote").mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    # Where the fake board's mktemp works; the job folder of this side lies elsewhere.
    (programs / "mktemp").write_text(
        f"#!/bin/sh\nTMPDIR={tmp_path / 'remote'} exec /usr/bin/env -i TMPDIR={tmp_path / 'remote'} "
        "/bin/mktemp -d\n"
    )
    (programs / "mktemp").chmod(0o755)
    return tmp_path


def test_a_board_runs_the_jobs_and_nothing_stays_there(fake: Path, jobs: tuple[RuntimeJob, ...]) -> None:
    (runtime,) = open_runtimes(["ssh:board"])
    info, answers = runtime.run(jobs, policy=POLICY)
    assert info.name == "onnxruntime"
    np.testing.assert_array_equal(answers[0].runs[2]["y"], quantised(np.asarray(jobs[0].feeds[2]["x"])))
    assert answers[1].refused
    assert list((fake / "remote").iterdir()) == []
    log = (fake / "log").read_text(encoding="utf-8")
    assert "BatchMode=yes" in log and "host board" in log


def test_a_board_without_a_runtime_is_told_and_cleaned(fake: Path, jobs: tuple[RuntimeJob, ...]) -> None:
    (fake / "bin" / "python3").write_text(
        "#!/bin/sh\necho No module named onnxruntime; exit 1\n", encoding="utf-8"
    )
    (runtime,) = open_runtimes(["ssh:board"])
    with pytest.raises(RuntimeUnavailableError, match="No module named onnxruntime") as caught:
        runtime.run(jobs, policy=POLICY)
    assert caught.value.hint is not None and "import onnxruntime" in caught.value.hint
    assert list((fake / "remote").iterdir()) == []


@pytest.mark.parametrize("answer", ["", "/tmp/x; rm -rf ~", "relative", "/tmp/../../etc", "$(reboot)"])
def test_a_folder_name_that_could_be_a_command_is_refused(
    answer: str, fake: Path, jobs: tuple[RuntimeJob, ...]
) -> None:
    (fake / "bin" / "mktemp").write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n", encoding="utf-8")
    (runtime,) = open_runtimes(["ssh:board"])
    with pytest.raises(RuntimeUnavailableError, match="not a folder"):
        runtime.run(jobs, policy=POLICY)


def test_a_host_that_cannot_be_reached_is_told(fake: Path, jobs: tuple[RuntimeJob, ...]) -> None:
    (fake / "bin" / "ssh").write_text(
        "#!/bin/sh\necho connect: no route to host >&2; exit 255\n", encoding="utf-8"
    )
    (runtime,) = open_runtimes(["ssh:board"])
    with pytest.raises(RuntimeUnavailableError, match="exit code 255: connect: no route to host"):
        runtime.run(jobs, policy=POLICY)
