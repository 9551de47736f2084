"""Programs: what they wrote, how they ended, and that none of them outlives its caller."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes.processes import find_program, run_program, started, tail

#: Starts a child that sleeps, writes its process number into a file, and sleeps too.
PARENT = """import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


def python(code: str, **options: object) -> str:
    return run_program(  # type: ignore[arg-type]
        [sys.executable, "-c", code], what="the test", **{"timeout_s": 30.0, **options}
    )


def is_running(pid: int) -> bool:
    """A process that ended and was not waited for counts as ended."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_the_first_program_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("second", "third"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "first").write_text("not executable", encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("first", "second", "third") == str(tmp_path / "second")
    assert find_program("first") is None and find_program() is None


def test_both_streams_come_back_in_order() -> None:
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr)"
    assert python(code) == "one\ntwo\n"
    assert python("import sys; sys.stdout.buffer.write(b'a\\xffb')") == "a\ufffdb"


def test_folder_and_environment_are_those_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    code = "import os; print(os.getcwd(), os.environ['KEPT'], os.environ['MORE'])"
    found = python(code, folder=tmp_path, environment={"MORE": "more"}).split()
    assert found == [str(tmp_path), "kept", "more"] and "MORE" not in os.environ


def test_nothing_can_be_typed_into_it_and_no_shell_reads_it() -> None:
    assert python("import sys; print(repr(sys.stdin.read()))") == "''\n"
    words = run_program(
        [sys.executable, "-c", "import sys; print(sys.argv[1:])", "$HOME; ls", "*"],
        what="the test",
        timeout_s=30.0,
    )
    assert words == "['$HOME; ls', '*']\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "ended with exit code 3: it wrote nothing"),
        ("print('a b\\n\\n  c'); raise SystemExit(1)", "ended with exit code 1: a b / c"),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal 9: it wrote nothing"),
    ],
)
def test_a_failure_tells_its_end_and_its_last_words(code: str, message: str) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        python(code, hint="do better")
    assert str(caught.value) == f"the test: {Path(sys.executable).name} {message}"
    assert caught.value.hint == "do better"


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(RuntimeUnavailableError, match="the test: no-such-program does not start: ") as caught:
        run_program(["no-such-program"], what="the test", timeout_s=1.0, hint="unused")
    assert caught.value.hint == "mixport runtimes list"


def test_a_program_that_takes_too_long_is_stopped() -> None:
    before = time.monotonic()
    with pytest.raises(RuntimeUnavailableError, match=r"was stopped after 0\.2 s"):
        python("import time; time.sleep(60)", timeout_s=0.2)
    assert time.monotonic() - before < 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_end_with_it(tmp_path: Path) -> None:
    path = tmp_path / "child"
    with (
        tempfile.TemporaryFile() as log,
        started([sys.executable, "-c", PARENT, path], what="the test", log=log) as process,
    ):
        deadline = time.monotonic() + 30
        while not (path.is_file() and path.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        child = int(path.read_text(encoding="utf-8"))
        assert is_running(child)
    assert process.returncode == -9
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_tail_is_one_printable_line_of_bounded_length() -> None:
    with tempfile.TemporaryFile() as log:
        assert tail(log) == "it wrote nothing"
        log.write(b"  red \x1b[31m\n\n" + b"\xff end  \n")
        assert tail(log) == "red  [31m / \ufffd end"
        log.write(b"x" * 5000 + b"\nlast")
        assert tail(log) == "x" * 1993 + " / last"
        assert len(tail(log)) == 2000
