from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixport.storage import atomic


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_temporary_folder_goes_at_the_end(tmp_path: Path) -> None:
    with atomic.temporary_folder(tmp_path, label="a") as folder:
        (folder / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_renamed_folder_stays(tmp_path: Path) -> None:
    with atomic.temporary_folder(tmp_path, label="a") as folder:
        folder.rename(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_sweep_takes_what_a_dead_process_left(tmp_path: Path) -> None:
    left = tmp_path / f"a-{dead_pid()}-0123abcd"
    left.mkdir()
    (left / "file").write_text("x")
    assert atomic.sweep(tmp_path, label="a") == [left]
    assert not left.exists()


def test_sweep_leaves_work_in_progress_and_other_names(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("a-notes", f"b-{dead_pid()}-0123abcd", f"a-{os.getpid()}-0123abcd")]
    for folder in kept:
        folder.mkdir()
    with atomic.temporary_folder(tmp_path, label="a") as folder:
        assert atomic.sweep(tmp_path, label="a") == []
        assert folder.is_dir()
    assert all(folder.is_dir() for folder in kept)


@pytest.mark.skipif(sys.platform == "win32", reason="folder locks need fcntl")
def test_sweep_takes_old_folders_of_a_process_id_in_use_again_but_not_locked_ones(tmp_path: Path) -> None:
    left = tmp_path / f"a-{os.getpid()}-0123abcd"
    left.mkdir()
    os.utime(left, (0, 0))
    with atomic.temporary_folder(tmp_path, label="a") as folder:
        os.utime(folder, (0, 0))
        assert atomic.sweep(tmp_path) == [left]
        assert folder.is_dir()


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda new, old: False)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    atomic.swap(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert (tmp_path / "new" / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda new, old: False)
    (tmp_path / "old").mkdir()
    with pytest.raises(FileNotFoundError):
        atomic.swap(tmp_path / "missing", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
