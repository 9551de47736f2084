from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixport.calibration.generator import file_hashes as module
from mixport.calibration.generator.file_hashes import file_hashes
from mixport.records.fingerprint import sha256_file
from mixport.storage.sealed_json import unseal


def old_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are really read."""
    seen: list[Path] = []

    def reading(path: Path) -> str:
        seen.append(path)
        return sha256_file(path)

    monkeypatch.setattr(module, "sha256_file", reading)
    return seen


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path, memory = old_file(tmp_path / "a", b"one"), tmp_path / "cache" / "memory.json"
    assert file_hashes([path], memory=memory) == {path: sha256_file(path)}
    assert file_hashes([path], memory=memory) == {path: sha256_file(path)}
    assert reads == [path]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[Path], change: str) -> None:
    path, memory = old_file(tmp_path / "a", b"one"), tmp_path / "memory.json"
    file_hashes([path], memory=memory)
    old_file(path, b"three" if change == "size" else b"two")
    if change == "time":
        os.utime(path, ns=(10**18, 10**18 + 1))
    assert file_hashes([path], memory=memory) == {path: sha256_file(path)}
    assert len(reads) == 2


def test_other_content_under_the_old_time_is_read(tmp_path: Path, reads: list[Path]) -> None:
    """As unpacking an archive does, or a package manager that gives every file the same time."""
    path, memory = old_file(tmp_path / "a", b"one"), tmp_path / "memory.json"
    file_hashes([path], memory=memory)
    old_file(path, b"two")
    assert file_hashes([path], memory=memory) == {path: sha256_file(path)}
    assert len(reads) == 2


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path, memory = tmp_path / "a", tmp_path / "memory.json"
    path.write_bytes(b"one")
    file_hashes([path], memory=memory)
    file_hashes([path], memory=memory)
    assert len(reads) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"/a": [1, 2]}', '{"/a": "x"}'])
def test_damage_counts_as_absence(tmp_path: Path, content: str) -> None:
    path, memory = old_file(tmp_path / "a", b"one"), tmp_path / "memory.json"
    memory.write_text(content)
    assert file_hashes([path], memory=memory) == {path: sha256_file(path)}
    assert unseal(memory.read_bytes()) == {str(path): [3, 10**18, path.stat().st_ctime_ns, sha256_file(path)]}


def test_a_changed_hash_is_not_believed(tmp_path: Path) -> None:
    path, memory = old_file(tmp_path / "a", b"one"), tmp_path / "memory.json"
    right = file_hashes([path], memory=memory)
    text = memory.read_text()
    memory.write_text(text.replace(right[path], "0" * 64))
    assert memory.read_text() != text
    assert file_hashes([path], memory=memory) == right


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a", b"one")
    (tmp_path / "cache").write_text("in the way")
    assert file_hashes([path], memory=tmp_path / "cache" / "memory.json") == {path: sha256_file(path)}
