from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixport.records.errors import BadInputError, StoreError
from mixport.records.fingerprint import sha256_file
from mixport.release.bundle import (
    BUNDLE_FILES,
    SUMS_FILE,
    ReleaseBundle,
    golden_count,
    read_bundle,
    read_golden,
    release,
    verify_hashes,
)
from mixport.storage import atomic

INPUTS = np.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
CODES = {
    "/conv/QuantizeLinear_output_0": np.arange(8, dtype=np.uint8).reshape(2, 4),
    "layer1.0.add": np.zeros((2, 1), np.int8),
}
OUTPUT = np.zeros((2, 10), np.float32)


def write(records: Any, out: Path, **changes: Any) -> ReleaseBundle:
    arguments = {
        "out": out,
        "manifest": records.manifest(),
        "lowered": records.lowered,
        "golden_inputs": INPUTS,
        "golden_codes": CODES,
        "golden_output": OUTPUT,
        "report_html": "<p>report</p>",
    }
    return release(**{**arguments, **changes})


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_bundle_holds_every_file_of_the_contract(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "deep" / "out")
    assert bundle.path == tmp_path / "deep" / "out"
    assert set(tree(bundle.path)) == {*BUNDLE_FILES, SUMS_FILE}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert bundle.model_path.read_bytes() == b"onnx bytes"
    assert (bundle.path / "report.html").read_text() == "<p>report</p>"
    assert bundle.manifest.files == {
        name: sha256_file(bundle.path / name) for name in BUNDLE_FILES if name != "manifest.json"
    }
    assert bundle.manifest.golden_images == 2
    assert json.loads((bundle.path / "manifest.json").read_text()) == bundle.manifest.document()
    assert read_bundle(bundle.path) == bundle
    assert verify_hashes(bundle.path) == []


def test_plain_numpy_reads_the_golden_vectors(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "out")
    with np.load(bundle.path / "golden" / "codes.npz", allow_pickle=False) as codes:
        assert codes.files == list(CODES)
        for name, array in CODES.items():
            assert codes[name].dtype == array.dtype
            np.testing.assert_array_equal(codes[name], array)
    assert np.load(bundle.path / "golden" / "inputs.npz")["input"].tobytes() == INPUTS.tobytes()
    assert np.load(bundle.path / "golden" / "outputs.npz")["output"].shape == (2, 10)
    golden = read_golden(bundle)
    np.testing.assert_array_equal(golden.inputs, INPUTS)
    assert list(golden.codes) == list(CODES)


def test_the_same_records_give_the_same_bytes(records: Any, tmp_path: Path) -> None:
    assert tree(write(records, tmp_path / "a").path) == tree(write(records, tmp_path / "b").path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_accepts_the_sums(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "out")
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", SUMS_FILE], cwd=bundle.path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(BUNDLE_FILES)


def test_an_older_bundle_is_replaced(records: Any, tmp_path: Path) -> None:
    write(records, tmp_path / "out")
    write(records, tmp_path / "out", report_html="<p>new</p>")
    assert (tmp_path / "out" / "report.html").read_text() == "<p>new</p>"
    assert verify_hashes(tmp_path / "out") == []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_an_empty_folder_may_be_used(records: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert verify_hashes(write(records, tmp_path / "out").path) == []


def test_foreign_folders_and_files_stay_as_they_are(records: Any, tmp_path: Path) -> None:
    cases: dict[str, dict[str, bytes]] = {
        "thesis": {"chapter1.txt": b"years of work"},
        "other-manifest": {"manifest.json": b'{"schema_version": 1}', "SHA256SUMS": b""},
        "other-schema": {"manifest.json": b'{"schema_version": 2}', "SHA256SUMS": b""},
        "not-json": {"manifest.json": b"{", "SHA256SUMS": b""},
        "no-sums": {"manifest.json": records.manifest().text().encode()},
    }
    for name, files in cases.items():
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file).write_bytes(data)
        with pytest.raises(BadInputError, match="is not a mixport bundle, so it stays as it is") as caught:
            write(records, tmp_path / name)
        assert caught.value.hint == "choose another folder with --out DIR"
        assert tree(tmp_path / name) == files
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInputError, match="is not a folder"):
        write(records, tmp_path / "file")
    with pytest.raises(BadInputError, match="no name of its own"):
        write(records, Path("/"))


def test_a_bundle_with_the_users_own_files_is_not_replaced(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "out")
    (bundle.path / "golden" / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match=r"golden/notes\.txt"):
        write(records, tmp_path / "out")
    assert (bundle.path / "golden" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_is_not_replaced(records: Any, tmp_path: Path) -> None:
    write(records, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BadInputError, match="is not a folder"):
        write(records, tmp_path / "link")


@pytest.mark.parametrize(
    ("step", "older"),
    [("copyfile", False), ("copyfile", True), ("sync_tree", False), ("sync_tree", True), ("swap", True)],
)
def test_a_full_disk_leaves_nothing_or_the_older_bundle(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, older: bool
) -> None:
    before = tree(write(records, tmp_path / "out").path) if older else {}

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil if step == "copyfile" else atomic, step, full)
    with pytest.raises(StoreError, match="No space left") as caught:
        write(records, tmp_path / "out", report_html="<p>new</p>")
    assert caught.value.hint is not None
    assert "--out" in caught.value.hint
    assert tree(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_release_left_is_swept_up(records: Any, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".out.mixport-{process.pid}-0123abcd"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    write(records, tmp_path / "out")
    assert not left.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden_inputs": INPUTS.astype(np.float64)}, "allowed float32"),
        ({"golden_inputs": INPUTS[0]}, "allowed float32"),
        ({"golden_output": OUTPUT[:1]}, r"golden output has shape \[1, 10\], allowed \[2, \.\.\.\]"),
        ({"golden_codes": {"a": np.zeros((2, 2), np.float32)}}, "golden codes a are float32"),
    ],
)
def test_golden_arrays_that_do_not_fit(
    records: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        write(records, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*BUNDLE_FILES, SUMS_FILE])
def test_a_changed_or_missing_file_is_found(records: Any, tmp_path: Path, name: str) -> None:
    path = write(records, tmp_path / "out").path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert verify_hashes(tmp_path / "out") != []
    path.unlink()
    assert any(name in problem for problem in verify_hashes(tmp_path / "out"))


def test_sums_cannot_name_files_outside(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "out")
    with (bundle.path / SUMS_FILE).open("a") as stream:
        stream.write(f"{'0' * 64}  ../secret\nnonsense\n")
    assert verify_hashes(bundle.path) == [
        "SHA256SUMS line 8: not a SHA-256 and a name",
        "../secret: not a path inside the bundle",
    ]


def test_sums_rewritten_by_hand_still_disagree_with_the_manifest(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "out")
    old = sha256_file(bundle.model_path)
    bundle.model_path.write_bytes(b"evil")
    sums = bundle.path / SUMS_FILE
    sums.write_text(sums.read_text().replace(old, sha256_file(bundle.model_path)))
    assert verify_hashes(bundle.path) == ["model.onnx: manifest.json and SHA256SUMS differ"]


def test_reading_what_is_no_bundle(records: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match=r"manifest\.json cannot be read"):
        read_bundle(tmp_path)
    manifest = tmp_path / "manifest.json"
    for text, message in (
        ("[" * 100_000, "cannot be read"),
        ("[]", "top level"),
        ('{"schema_version": 7}', "schema_version 7, this mixport reads 1"),
        ('{"schema_version": 1}', "Field required"),
    ):
        manifest.write_text(text)
        with pytest.raises(BadInputError, match=message) as caught:
            read_bundle(tmp_path)
        assert caught.value.hint
    with manifest.open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(BadInputError, match="allowed 67108864"):
        read_bundle(tmp_path)


def test_golden_files_are_checked_on_reading(records: Any, tmp_path: Path) -> None:
    bundle = write(records, tmp_path / "out")
    np.savez(bundle.path / "golden" / "codes.npz", a=np.array([{}], dtype=object))
    with pytest.raises(BadInputError, match="dtype object"):
        read_golden(bundle)
    np.savez(bundle.path / "golden" / "codes.npz", a=np.zeros((2, 2), np.uint8))
    np.savez(bundle.path / "golden" / "inputs.npz", other=INPUTS)
    with pytest.raises(BadInputError, match="lack `input` or `output`"):
        read_golden(bundle)


@pytest.mark.parametrize(
    ("size", "count"), [(0, 16), (1, 16), (2 << 20, 16), (3 << 20, 10), (32 << 20, 1), (1 << 40, 1)]
)
def test_golden_count(size: int, count: int) -> None:
    assert golden_count(size) == count
