"""The catalogue on a machine that has nothing: names, what is missing, and what installing would fetch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.validate.runtimes import catalogue, emulated
from mixport.validate.runtimes.catalogue import (
    FORMS,
    check_names,
    download_mb,
    install,
    open_runtimes,
    survey,
)
from mixport.validate.runtimes.names import NAMES
from mixport.validate.runtimes.pins import ONNXRUNTIME, ONNXRUNTIME_WEB


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and an empty PATH, on an x64 Linux."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path / "runtimes"))
    monkeypatch.setattr(emulated, "host_architecture", lambda: "amd64")
    monkeypatch.setattr(emulated.platform, "system", lambda: "Linux")


def test_every_form_of_a_name_is_listed() -> None:
    assert (*NAMES, "NAME@VERSION", "ssh:HOST", "command:LINE") == FORMS


@pytest.mark.parametrize("name", [*NAMES, "arm64@1.31.1", "ssh:user@board", "command:run {job}"])
def test_good_names_pass_without_being_installed(name: str) -> None:
    assert check_names([name]) is None


@pytest.mark.parametrize("name", ["toaster", "toaster@1.2.3", "", "Native", "native "])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(BadInputError, match=f"unknown runtime {name!r}, known: native, x64-avx2") as caught:
        check_names(["native", name])
    assert caught.value.hint == "mixport runtimes list"


def test_runtimes_open_once_each_in_the_order_asked_for() -> None:
    found = open_runtimes(["ssh:board", "native", "command:x {job}", "native", "ssh:board"])
    assert [one.name for one in found] == ["ssh:board", "native", "command:x {job}"]
    assert open_runtimes([]) == ()


def test_names_are_checked_before_anything_is_opened() -> None:
    # wasm is not installed here, but the wrong name is the user's to mend first.
    with pytest.raises(BadInputError, match="toaster"):
        open_runtimes(["wasm", "toaster"])
    with pytest.raises(RuntimeUnavailableError, match="runtime wasm cannot run: node is missing"):
        open_runtimes(["native", "wasm"])


def test_a_survey_says_what_is_here_and_what_is_missing() -> None:
    found = {one.name: one for one in survey()}
    assert [*found] == [*NAMES]
    assert [name for name, one in found.items() if one.present] == ["native"]
    native, arm64, chromium = found["native"], found["arm64"], found["wasm-chromium"]
    assert (native.missing, native.hint, native.download_mb) == ("", None, 0)
    assert arm64.runtime == f"onnxruntime {ONNXRUNTIME}" and arm64.where == "qemu-aarch64 -cpu max"
    assert arm64.missing == "runtime arm64 is not installed: qemu-aarch64-static is missing"
    assert arm64.hint == "mixport runtimes install arm64" and arm64.download_mb == 73 + 63
    assert chromium.runtime == f"onnxruntime-web {ONNXRUNTIME_WEB}" and chromium.where == "chromium"
    assert chromium.hint == "apt-get install chromium" and chromium.download_mb == 35


def test_a_survey_of_a_version_names_it() -> None:
    (one, again) = survey(["native@9.9.9", "wasm@9.9.9", "native@9.9.9"])
    assert (one.name, one.runtime, one.present) == ("native@9.9.9", "onnxruntime 9.9.9", False)
    assert one.hint == "mixport runtimes install native@9.9.9" and one.download_mb == 25
    assert again.runtime == "onnxruntime-web 9.9.9"


@pytest.mark.parametrize(
    ("names", "megabytes"),
    [
        ([], 0),
        (["native"], 0),
        # Here this Python runs under the emulator itself.
        (["x64-avx2"], 73),
        (["x64-avx2", "arm64"], 73 + 63),
        (["arm64", "arm64@1.31.1"], 73 + 63 + 63),
        (["wasm", "wasm-chromium"], 35),
        (["wasm", "wasm@9.9.9"], 35 + 35),
        (["native@9.9.9", "x64-avx2@9.9.9"], 25 + 73),
    ],
    ids=str,
)
def test_parts_that_runtimes_share_are_fetched_once(names: list[str], megabytes: int) -> None:
    assert download_mb(names) == megabytes


class Heard:
    total = done = 0

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self.total = total

        def advance(count: int) -> None:
            self.done += count

        yield advance


def test_every_part_is_fetched_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(what: str, steps: int) -> Callable[..., None]:
        def run(*args: object) -> None:
            asked.append(what)
            advance = next(one for one in args if callable(one))
            for _ in range(steps):
                advance(1)

        return run

    monkeypatch.setattr(catalogue, "install_qemu", fetch("qemu", 1))
    monkeypatch.setattr(catalogue, "install_machine", fetch("machine", 2))
    monkeypatch.setattr(catalogue.wheel, "install_wheel", fetch("wheel", 1))
    monkeypatch.setattr(catalogue.web, "install_web", fetch("web", 1))
    heard = Heard()
    install(["arm64", "wasm", "native@9.9.9", "wasm-chromium"], progress=heard)
    assert asked == ["qemu", "machine", "web", "wheel"] and heard.total == heard.done == 5


@pytest.mark.parametrize("name", ["ssh:board", "command:x {job}", "toaster"])
def test_what_has_no_parts_cannot_be_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.web, "install_web", lambda *_: pytest.fail("fetched before the check"))
    with pytest.raises(BadInputError, match=f"runtime '{name}' cannot be installed, known: native"):
        install(["wasm", name])
