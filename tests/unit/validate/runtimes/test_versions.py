"""NAME@VERSION: another version than the installed or pinned one, fetched into a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.validate.runtimes import (
    check_names,
    download_mb,
    install,
    open_runtimes,
    split_name,
    survey,
    web,
)
from mixport.validate.runtimes.emulated import ARM64
from mixport.validate.runtimes.fetching import wheel
from mixport.validate.runtimes.names import RuntimeName
from tests.unit.validate.runtimes.conftest import POLICY, quantised
from tests.unit.validate.runtimes.test_install import cache, put_npm

__all__ = ["cache"]

#: A package that is the installed one, and says that it is of another version.
PACKAGE = """import sys
sys.path[:] = [path for path in sys.path if path != {site!r}]
del sys.modules["onnxruntime"]
import onnxruntime
onnxruntime.__version__ = {version!r}
"""


def put_pip(monkeypatch: pytest.MonkeyPatch, *, says: str) -> list[str]:
    """In place of pip; gives the requirements that it was asked for."""
    asked: list[str] = []

    def run(command: Sequence[str | Path], **_: object) -> str:
        words = [str(word) for word in command]
        asked.append(words[-1])
        site = Path(words[words.index("--target") + 1])
        (site / "onnxruntime").mkdir(parents=True)
        # The folder gets its name after pip has ended.
        final = str(site.parent.parent / wheel.folder_of(words[-1].partition("==")[2]) / "site")
        (site / "onnxruntime" / "__init__.py").write_text(
            PACKAGE.format(site=final, version=says), encoding="utf-8"
        )
        return ""

    monkeypatch.setattr(wheel, "run_program", run)
    return asked


@pytest.mark.parametrize(
    ("version", "numpy"),
    [("1.16.3", "1.26.4"), ("1.18.1", "1.26.4"), ("1.19.0", None), ("1.20.1", None), ("2.0.0", None)],
)
def test_an_old_runtime_comes_with_a_numpy_that_it_can_import(
    monkeypatch: pytest.MonkeyPatch, version: str, numpy: str | None
) -> None:
    asked: list[list[str]] = []

    def run(command: Sequence[str | Path], **_: object) -> str:
        words = [str(word) for word in command]
        asked.append(words[words.index("--target") + 2 :])
        return ""

    monkeypatch.setattr(wheel, "run_program", run)
    install([f"native@{version}"])
    assert asked == [[f"onnxruntime=={version}", *([] if numpy is None else [f"numpy=={numpy}"])]]
    assert ("numpy" in wheel.folder_of(version)) == (numpy is not None)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("native", RuntimeName(base="native")),
        ("arm64@1.31.1", RuntimeName(base="arm64", version="1.31.1")),
        (
            "wasm@1.31.0-dev.20260914-8d85527a0",
            RuntimeName(base="wasm", version="1.31.0-dev.20260914-8d85527a0"),
        ),
        ("ssh:user@board", RuntimeName(base="ssh:user@board")),
        ("command:x@1.2.3 {job}", RuntimeName(base="command:x@1.2.3 {job}")),
        ("toaster@1.2.3", RuntimeName(base="toaster@1.2.3")),
    ],
)
def test_only_a_runtime_of_ours_has_a_version_in_its_name(name: str, parts: RuntimeName) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    "name",
    ["native@", "native@latest", "native@1.31", "arm64@../../1.2.3", "arm64@1.2.3/..", "wasm@1.2.3 --x"],
)
def test_a_version_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="has version"):
        check_names([name])
    with pytest.raises(BadInputError, match="has version"):
        install([name])


def test_a_version_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(
        RuntimeUnavailableError, match=r"onnxruntime 9\.8\.7 for this Python is missing"
    ) as caught:
        open_runtimes(["native@9.8.7"])
    assert caught.value.hint == "mixport runtimes install native@9.8.7"
    (entry,) = survey(["native@9.8.7"])
    assert (entry.present, entry.runtime, entry.hint) == (
        False,
        "onnxruntime 9.8.7",
        "mixport runtimes install native@9.8.7",
    )
    assert entry.download_mb > 0


def test_a_fetched_wheel_is_found_before_the_installed_one(
    monkeypatch: pytest.MonkeyPatch, jobs: tuple[RuntimeJob, ...]
) -> None:
    asked = put_pip(monkeypatch, says="9.8.7")
    install(["native@9.8.7", "native@9.8.7"])
    install(["native@9.8.7"])
    assert asked == ["onnxruntime==9.8.7"]
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    native, other = open_runtimes(["native", "native@9.8.7"])
    assert native.run(jobs[2:], policy=POLICY)[0].version == wheel.own_version()
    info, answers = other.run(jobs[2:], policy=POLICY)
    assert (other.name, info.version) == ("native@9.8.7", "9.8.7")
    np.testing.assert_array_equal(answers[0].runs[0]["y"], quantised(np.asarray(jobs[2].feeds[0]["x"])))


def test_an_answer_of_another_version_is_none(
    monkeypatch: pytest.MonkeyPatch, jobs: tuple[RuntimeJob, ...]
) -> None:
    put_pip(monkeypatch, says="9.8.6")
    install(["native@9.8.7"])
    (runtime,) = open_runtimes(["native@9.8.7"])
    with pytest.raises(RuntimeUnavailableError, match=r"native@9\.8\.7 ran onnxruntime 9\.8\.6, not 9\.8\.7"):
        runtime.run(jobs[2:], policy=POLICY)


def test_the_installed_version_needs_nothing_fetched(jobs: tuple[RuntimeJob, ...]) -> None:
    name = f"native@{wheel.own_version()}"
    assert download_mb([name]) == 0
    (runtime,) = open_runtimes([name])
    assert runtime.name == name and runtime.run(jobs[2:], policy=POLICY)[0].version == wheel.own_version()


def test_versions_of_a_runtime_lie_in_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ARM64.folder("1.2.3") != ARM64.folder() and "1.2.3" in ARM64.folder("1.2.3")
    put_npm(tmp_path, monkeypatch, version="1.2.3")
    install(["wasm@1.2.3"])
    assert "onnxruntime-web@1.2.3" in (tmp_path / "arguments").read_text(encoding="utf-8").split()
    assert web.find_dist("1.2.3") is not None and web.find_dist() is None
    with pytest.raises(RuntimeUnavailableError) as caught:
        web.need_dist("wasm", None)
    assert caught.value.hint == "mixport runtimes install wasm"
