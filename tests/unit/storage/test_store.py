from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixport.records.errors import StoreError
from mixport.storage.sealed_json import seal, unseal
from mixport.storage.store import Store

KEY = "ab" * 32
REPOSITORY = Path(__file__).resolve().parents[3]

HOLD_OPEN = """
import sys, time
from pathlib import Path
from mixport.storage.store import Store
with Store(Path(sys.argv[1])).create("kind", "key") as folder:
    (folder / "half").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""

WRITE_MANY = """
import sys
from pathlib import Path
from mixport.storage.store import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    with store.create("kind", f"key-{number}", metadata={"number": number}) as folder:
        for part in range(5):
            (folder / f"part-{part}").write_bytes(bytes([part]) * 20_000)
    assert store.get("kind", f"key-{number}") is not None
"""

LIMITED = """
import resource, sys
from pathlib import Path
from mixport.records.errors import StoreError
from mixport.storage.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with Store(Path(sys.argv[1])).create("kind", "key") as folder:
        (folder / "big").write_bytes(b"x" * 100_000)
except StoreError as error:
    print(error, "|", error.hint)
"""


def fill(store: Store, key: str = KEY, content: bytes = b"content") -> Path:
    with store.create("kind", key, metadata={"n": 1}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file.bin").write_bytes(content)
        (folder / "other.txt").write_text("text")
    found = store.get("kind", key)
    assert found is not None
    return found


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def leftovers(store: Store) -> list[Path]:
    return sorted((store.root / ".tmp").iterdir())


def test_an_entry_comes_back_with_its_metadata(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert store.get("kind", KEY) is None
    folder = fill(store)
    assert folder == tmp_path / "cache" / "kind" / KEY
    assert (folder / "deep" / "file.bin").read_bytes() == b"content"
    assert store.metadata("kind", KEY) == {"n": 1}
    assert store.verify("kind", KEY) == []
    (entry,) = store.entries()
    assert (entry.kind, entry.key, entry.bytes, entry.metadata) == ("kind", KEY, 11, {"n": 1})
    assert entry.created is not None
    record = json.loads((folder / "entry.json").read_text())
    assert record["schema_version"] == 2
    assert set(record["files"]) == {"deep/file.bin", "other.txt"}
    assert leftovers(store) == []


def test_metadata_may_be_filled_inside_the_block(tmp_path: Path) -> None:
    store, metadata = Store(tmp_path), dict[str, object]()
    with store.create("kind", KEY, metadata=metadata):
        metadata["found"] = 3
    assert store.metadata("kind", KEY) == {"found": 3}


def test_one_flipped_bit_is_found_and_the_entry_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = fill(store) / "deep" / "file.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert store.verify("kind", KEY) == ["deep/file.bin: content differs from its recorded SHA-256"]
    assert store.get("kind", KEY) is None
    (damaged,) = store.damaged
    assert (damaged.kind, damaged.key) == ("kind", KEY)
    assert damaged.problems == ("deep/file.bin: content differs from its recorded SHA-256",)
    assert damaged.moved_to is not None
    assert (damaged.moved_to / "deep" / "file.bin").read_bytes() == data
    assert store.entries() == []
    fill(store)
    assert store.verify("kind", KEY) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("other.txt", None, "other.txt: missing"),
        ("other.txt", b"tex", "other.txt: 3 bytes, recorded 4"),
        ("entry.json", None, "entry.json: missing"),
        ("entry.json", b"{", "entry.json: cannot be read"),
        ("entry.json", b"[]", "entry.json: cannot be read"),
    ],
)
def test_damage_is_named_and_never_taken_for_whole(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    store = Store(tmp_path)
    folder = fill(store)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    (line,) = store.verify("kind", KEY)
    assert line.startswith(problem)
    assert [entry.key for entry in store.entries("kind")] == [KEY]
    assert store.get("kind", KEY) is None
    assert len(store.damaged) == 1


@pytest.mark.parametrize("change", ["metadata", "another version"])
def test_a_changed_record_is_damaged(tmp_path: Path, change: str) -> None:
    store = Store(tmp_path)
    record = fill(store) / "entry.json"
    if change == "metadata":
        record.write_text(record.read_text().replace('"n": 1', '"n": 2'))
        problem = "entry.json: cannot be read: content differs from its record_sha256"
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "schema_version": 1}))
        problem = (
            "entry.json: cannot be read: does not start with a record_sha256: damaged, or written by "
            "another version"
        )
    assert store.verify("kind", KEY) == [problem]
    with pytest.raises(StoreError, match=r"entry\.json: cannot be read"):
        store.metadata("kind", KEY)
    assert store.get("kind", KEY) is None
    assert [one.problems for one in store.damaged] == [(problem,)]


def test_an_entry_under_another_name_is_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store).rename(tmp_path / "kind" / "other")
    assert store.verify("kind", "other") == [f"entry.json: belongs to kind/{KEY}"]
    assert store.get("kind", "other") is None


def test_recorded_names_cannot_leave_the_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = fill(store)
    record = unseal((folder / "entry.json").read_bytes())
    outside = tmp_path / "outside"
    outside.write_text("text")
    record["files"] = {"../../outside": record["files"]["other.txt"]}
    (folder / "entry.json").write_bytes(seal(record))
    assert store.verify("kind", KEY) == ["'../../outside': not a path inside the entry"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_is_no_file_of_an_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = fill(store) / "other.txt"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.verify("kind", KEY) == ["other.txt: missing"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "A", "-a", "a.b", "a" * 129, ".tmp", "é"]
)
def test_names_that_could_leave_the_store_are_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="cache key"):
        store.get("kind", name)
    with pytest.raises(StoreError, match="cache kind"), store.create(name, KEY):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.create("kind", KEY) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert store.get("kind", KEY) is None
    assert leftovers(store) == []


def test_an_error_of_a_source_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Store(tmp_path / "cache").create("kind", KEY):
        (tmp_path / "source").read_bytes()


def test_a_full_disk_in_the_block_is_explained(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="No space left") as caught, store.create("kind", KEY):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.hint is not None
    assert "--cache" in caught.value.hint
    assert leftovers(store) == []


def test_a_full_disk_at_the_end_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    monkeypatch.setattr("mixport.storage.atomic.sync_tree", full)
    with pytest.raises(StoreError, match="No space left"):
        fill(store)
    assert store.entries() == []
    assert leftovers(store) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert "cannot be written: File too large | free space" in done.stdout
    assert Store(tmp_path).entries() == []
    assert leftovers(Store(tmp_path)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    store = Store(small_disk)
    fill(store, key="first")
    with pytest.raises(StoreError, match="No space left"):
        fill(store, content=b"x" * 1_000_000)
    assert leftovers(store) == []
    assert [entry.key for entry in store.entries()] == ["first"]
    assert store.verify("kind", "first") == []
    fill(store, content=b"x" * 1_000)


def test_where_the_cache_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        fill(Store(tmp_path / "file"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_no_entry_and_is_swept_up_after(tmp_path: Path) -> None:
    process = start(HOLD_OPEN, tmp_path)
    store = Store(tmp_path)
    assert len(leftovers(store)) == 1
    fill(store)
    assert len(leftovers(store)) == 1, "a living process's work must stay"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.get("kind", "key") is None
    assert [entry.key for entry in store.entries()] == [KEY]
    fill(store, key="key")
    assert leftovers(store) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("delay", [0.003, 0.02, 0.05])
def test_whatever_the_moment_of_the_kill_visible_entries_are_whole(tmp_path: Path, delay: float) -> None:
    process = start(WRITE_MANY, tmp_path, 10_000)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    assert [store.verify(entry.kind, entry.key) for entry in store.entries()] == [[]] * len(store.entries())


def test_two_writers_of_the_same_entries_do_not_harm_each_other(tmp_path: Path) -> None:
    processes = [start(WRITE_MANY, tmp_path, 40) for _ in range(2)]
    for process in processes:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    store = Store(tmp_path)
    assert len(store.entries("kind")) == 40
    assert all(store.verify(entry.kind, entry.key) == [] for entry in store.entries())
    assert leftovers(store) == []
    assert not (tmp_path / ".damaged").exists()


def test_the_second_writer_keeps_the_first_ones_whole_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create("kind", KEY) as late:
        (late / "late").write_text("x")
        fill(store)
    assert sorted(path.name for path in (tmp_path / "kind" / KEY).iterdir()) == [
        "deep",
        "entry.json",
        "other.txt",
    ]


def test_the_second_writer_replaces_a_damaged_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create("kind", KEY) as late:
        (late / "late").write_text("x")
        (fill(store) / "other.txt").write_text("harm")
    found = store.get("kind", KEY)
    assert found is not None
    assert (found / "late").read_text() == "x"
    assert len(store.damaged) == 1


def test_remove(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    store.remove("kind", KEY)
    assert store.entries() == []
    assert leftovers(store) == []
    with pytest.raises(StoreError, match="no cache entry"):
        store.remove("kind", KEY)
