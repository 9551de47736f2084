"""Fetching: whole or not at all, with clients that are small scripts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.validate.runtimes import install, open_runtimes, survey, web
from mixport.validate.runtimes.fetching import debian
from mixport.validate.runtimes.fetching.cache_folder import cache_folder, installing, kept
from mixport.validate.runtimes.pins import ONNXRUNTIME_WEB, WEB_FILES

#: Fills node_modules below the folder after --prefix.
NPM = """#!/bin/sh
dist="$3/node_modules/onnxruntime-web/dist"
mkdir -p "$dist"
for name in FILES ort.webgpu.mjs; do echo "$name" > "$dist/$name"; done
echo '{"version": "VERSION"}' > "$dist/../package.json"
echo "$@" > ARGUMENTS
AT_THE_END
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path / "runtimes"))
    return tmp_path / "runtimes"


def put_npm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    version: str = ONNXRUNTIME_WEB,
    files: str = " ".join(WEB_FILES),
    end: str = "",
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    text = (
        NPM.replace("FILES", files)
        .replace("VERSION", version)
        .replace("ARGUMENTS", str(tmp_path / "arguments"))
        .replace("AT_THE_END", end)
    )
    (folder / "npm").write_text(text, encoding="utf-8")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_cache_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("MIXPORT_RUNTIMES")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert cache_folder() == Path("/somewhere/cache/mixport/runtimes")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "mixport" / "runtimes"


def test_web_is_fetched_and_only_its_wasm_build_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, monkeypatch)
    install(["wasm", "wasm-chromium"])
    dist = web.find_dist()
    assert dist is not None and sorted(path.name for path in dist.iterdir()) == sorted(WEB_FILES)
    words = (tmp_path / "arguments").read_text(encoding="utf-8").split()
    assert f"onnxruntime-web@{ONNXRUNTIME_WEB}" in words and "--ignore-scripts" in words
    (tmp_path / "arguments").unlink()
    install(["wasm"])
    assert not (tmp_path / "arguments").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": "exit 7"}, "exit code 7"),
        ({"end": "kill -9 $$"}, "signal 9"),
        ({"version": "1.0.0"}, "version 1.0.0"),
        ({"files": "ort.node.min.mjs"}, "npm left no ort.wasm.min.mjs"),
    ],
)
def test_a_fetch_that_breaks_off_is_never_taken_for_a_whole_one(
    options: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    put_npm(tmp_path, monkeypatch, **options)
    with pytest.raises(RuntimeUnavailableError, match=message):
        install(["wasm"])
    assert list(cache.iterdir()) == [] and web.find_dist() is None
    put_npm(tmp_path, monkeypatch)
    install(["wasm"])
    assert web.find_dist() is not None


def test_what_a_killed_process_left_is_no_runtime_and_is_swept(cache: Path) -> None:
    left = cache / f"{web.folder_of()}-{2**22 + 1}-0123abcd"
    left.mkdir(parents=True)
    (left / "installed.json").write_text("{}", encoding="utf-8")
    half = cache / "half"
    half.mkdir()
    assert kept(web.folder_of()) is None and kept("half") is None
    with installing("part") as folder:
        (folder / "file").write_text("x", encoding="utf-8")
        assert kept("part") is None
    assert kept("part") == cache / "part" and not left.exists()


def test_an_error_inside_leaves_nothing(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt), installing("part") as folder:
        (folder / "file").touch()
        raise KeyboardInterrupt
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path / "file" / "below"))
    with pytest.raises(RuntimeUnavailableError, match="cannot be written") as caught, installing("part"):
        pass
    assert caught.value.hint is not None and "MIXPORT_RUNTIMES" in caught.value.hint


def test_a_machine_without_the_clients_says_which_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(RuntimeUnavailableError, match="npm is not here"):
        install(["wasm"])
    with pytest.raises(RuntimeUnavailableError, match="apt-get is not here"):
        debian.unpack_packages(
            ("python3",), architecture="arm64", into=tmp_path / "root", workdir=tmp_path / "work"
        )


def test_apt_works_on_a_state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path / "log"}\nfor w; do [ "$w" = install ] && touch '
        f"{tmp_path}/work/archives/p.deb; done\nexit 0\n"
    )
    (folder / "dpkg-deb").write_text('#!/bin/sh\nmkdir -p "$3/usr/bin"; touch "$3/usr/bin/python3.12"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "work").mkdir()
    debian.unpack_packages(
        ("python3",), architecture="arm64", into=tmp_path / "root", workdir=tmp_path / "work"
    )
    assert (tmp_path / "root" / "bin" / "python3.12").is_file()
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "install --download-only --yes python3" in log
    conf = (tmp_path / "work" / "apt.conf").read_text(encoding="utf-8")
    assert 'APT::Architecture "arm64"' in conf and f'Dir::State::lists "{tmp_path}/work/lists"' in conf
    assert 'AllowUnauthenticated "false"' in conf


def test_every_missing_runtime_has_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    found = survey()
    assert [one.name for one in found if one.present] == ["native"]
    for one in found[1:]:
        assert one.missing and one.hint and one.download_mb > 0
        with pytest.raises(RuntimeUnavailableError):
            open_runtimes([one.name])
    with pytest.raises(BadInputError, match="cannot be installed"):
        install(["ssh:board"])


def test_a_cache_folder_of_nobody_is_the_user_s_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPORT_RUNTIMES", "~no-such-user-here/runtimes")
    with pytest.raises(BadInputError, match="no such user"):
        survey()
