"""The release bundle: written whole or not at all, and checked by hashes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mixport.records.errors import BadInputError, MixportError, StoreError
from mixport.records.fingerprint import sha256_file
from mixport.records.quantized_model import LoweredGraph
from mixport.release.manifest import SCHEMA_VERSION, Manifest
from mixport.storage import atomic
from mixport.storage.npz import read_npz, write_npz
from mixport.storage.out_folder import is_free

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
INPUTS_FILE = "golden/inputs.npz"
CODES_FILE = "golden/codes.npz"
OUTPUTS_FILE = "golden/outputs.npz"
REPORT_FILE = "report.html"
SUMS_FILE = "SHA256SUMS"

#: Every file of a bundle but SHA256SUMS.
BUNDLE_FILES = (MANIFEST_FILE, MODEL_FILE, INPUTS_FILE, CODES_FILE, OUTPUTS_FILE, REPORT_FILE)

_GOLDEN_BYTES = 32 << 20
_MAX_GOLDEN_IMAGES = 16
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_SUMS_BYTES = 1 << 20
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_REBUILD = "build it again with the command under `reproduce` in its manifest"


@dataclass(frozen=True, kw_only=True)
class ReleaseBundle:
    """A bundle on disk and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The deployable file."""
        return self.path / MODEL_FILE


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden vectors of a bundle.

    Attributes:
        inputs: float32 [N, 3, H, W].
        codes: by ONNX tensor name, first axis N.
        output: float32 [N, ...].
    """

    inputs: NDArray[np.float32]
    codes: Mapping[str, NDArray[Any]]
    output: NDArray[np.float32]


def golden_count(code_bytes_per_image: int) -> int:
    """How many golden images keep the codes below about 32 MB: 1 to 16."""
    return max(1, min(_MAX_GOLDEN_IMAGES, _GOLDEN_BYTES // max(1, code_bytes_per_image)))


def release(
    *,
    out: Path,
    manifest: Manifest,
    lowered: LoweredGraph,
    golden_inputs: NDArray[np.float32],
    golden_codes: Mapping[str, NDArray[Any]],
    golden_output: NDArray[np.float32],
    report_html: str,
) -> ReleaseBundle:
    """Write a bundle beside `out`, then put it in place in one step. An older bundle there is replaced.

    Args:
        out: the bundle's folder: new, empty, or a bundle.
        manifest: complete but for `files` and `golden_images`.
        lowered: the ONNX file, copied byte by byte.
        golden_inputs: float32 [N, 3, H, W].
        golden_codes: by ONNX tensor name, first axis N.
        golden_output: float32, first axis N.
        report_html: one self-contained page.

    Raises:
        BadInputError: `out` holds anything else; it stays as it is. Or the golden arrays do not fit each
            other.
        StoreError: the disk is full or does not let us write; nothing is left behind.
    """
    _check_golden(golden_inputs, golden_codes, golden_output)
    check_replaceable(out)
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        label = f".{out.name}.mixport"
        atomic.sweep(out.parent, label=label)
        with atomic.temporary_folder(out.parent, label=label) as folder:
            (folder / "golden").mkdir()
            shutil.copyfile(lowered.model_path, folder / MODEL_FILE)
            write_npz(folder / INPUTS_FILE, {"input": golden_inputs})
            write_npz(folder / CODES_FILE, golden_codes)
            write_npz(folder / OUTPUTS_FILE, {"output": golden_output})
            (folder / REPORT_FILE).write_text(report_html, encoding="utf-8")
            files = {name: sha256_file(folder / name) for name in BUNDLE_FILES if name != MANIFEST_FILE}
            whole = manifest.model_copy(update={"files": files, "golden_images": len(golden_inputs)})
            (folder / MANIFEST_FILE).write_text(whole.text(), encoding="utf-8")
            sums = [f"{sha256_file(folder / name)}  {name}\n" for name in sorted(BUNDLE_FILES)]
            (folder / SUMS_FILE).write_text("".join(sums), encoding="utf-8")
            atomic.sync_tree(folder)
            # Somebody may have used the place meanwhile.
            check_replaceable(out)
            atomic.put(folder, out)
    return ReleaseBundle(path=out, manifest=whole)


def check_replaceable(out: Path) -> None:
    """Raise BadInputError unless `out` is free, an empty folder, or a bundle with nothing of the user's in
    it.
    """
    hint = "choose another folder with --out DIR"
    if is_free(out, hint=hint):
        return
    try:
        read_bundle(out)
        if not (out / SUMS_FILE).is_file():
            raise BadInputError(f"no {SUMS_FILE}")
    except MixportError as error:
        raise BadInputError(
            f"--out {out} exists and is not a mixport bundle, so it stays as it is", hint=hint
        ) from error
    known = {*BUNDLE_FILES, SUMS_FILE}
    foreign = sorted(
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if not path.is_dir() and path.relative_to(out).as_posix() not in known
    )
    if foreign:
        raise BadInputError(
            (
                f"--out {out} is a bundle that holds other files too ({', '.join(foreign[:3])}), so it "
                "stays as it is"
            ),
            hint=f"move {foreign[0]} elsewhere, or choose another folder with --out DIR",
        )


def read_bundle(path: Path) -> ReleaseBundle:
    """Read a bundle's manifest. Hashes are `verify_hashes`'s to check.

    Raises:
        BadInputError: no folder, no manifest, or one that is damaged or of another schema version.
    """
    if not path.is_dir():
        raise BadInputError(f"{path} is not a bundle: no such folder", hint="mixport build --out DIR ...")
    try:
        raw = _read_small(path / MANIFEST_FILE, _MAX_MANIFEST_BYTES)
        document = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"{path} is not a bundle: {MANIFEST_FILE} cannot be read: {error}", hint=_REBUILD
        ) from error
    if isinstance(document, dict):
        got = cast("dict[str, object]", document).get("schema_version")
        if got != SCHEMA_VERSION:
            raise BadInputError(
                f"{path}: {MANIFEST_FILE} has schema_version {got!r}, this mixport reads {SCHEMA_VERSION}",
                hint="update mixport",
            )
    try:
        return ReleaseBundle(path=path, manifest=Manifest.model_validate_json(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        raise BadInputError(f"{path}: {MANIFEST_FILE}: {where}: {first['msg']}", hint=_REBUILD) from error


def read_golden(bundle: ReleaseBundle) -> Golden:
    """The golden vectors of a bundle. Raises BadInputError: missing, damaged, or arrays that do not fit each
    other.
    """
    inputs, outputs = _read_arrays(bundle.path / INPUTS_FILE), _read_arrays(bundle.path / OUTPUTS_FILE)
    codes = _read_arrays(bundle.path / CODES_FILE)
    if "input" not in inputs or "output" not in outputs:
        raise BadInputError(f"{bundle.path}: golden vectors lack `input` or `output`", hint=_REBUILD)
    _check_golden(inputs["input"], codes, outputs["output"])
    return Golden(inputs=inputs["input"], codes=codes, output=outputs["output"])


def verify_hashes(path: Path) -> list[str]:
    """What is wrong with a bundle's files, one line each; empty when SHA256SUMS, the manifest and the files
    agree.
    """
    try:
        lines = _read_small(path / SUMS_FILE, _MAX_SUMS_BYTES).decode("utf-8").splitlines()
        listed = read_bundle(path).manifest.files
    except (OSError, ValueError, MixportError) as error:
        return [f"{SUMS_FILE} or {MANIFEST_FILE} cannot be read: {error}"]
    problems: list[str] = []
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if match := _SUM_LINE.fullmatch(line):
            sums[match[2]] = match[1]
        else:
            problems.append(f"{SUMS_FILE} line {number}: not a SHA-256 and a name")
    problems += [f"{name}: not in {SUMS_FILE}" for name in BUNDLE_FILES if name not in sums]
    problems += [
        f"{name}: {MANIFEST_FILE} and {SUMS_FILE} differ" for name in listed if listed[name] != sums.get(name)
    ]
    problems += [
        f"{name}: not in {MANIFEST_FILE}"
        for name in BUNDLE_FILES
        if name not in listed and name != MANIFEST_FILE
    ]
    return problems + [
        problem for name, wanted in sums.items() if (problem := _hash_problem(path, name, wanted))
    ]


def _hash_problem(folder: Path, name: str, wanted: str) -> str | None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        return f"{name}: not a path inside the bundle"
    try:
        if not (folder / relative).is_file():
            return f"{name}: missing"
        return (
            None if sha256_file(folder / relative) == wanted else f"{name}: content differs from {SUMS_FILE}"
        )
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"


def _read_small(path: Path, limit: int) -> bytes:
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{size} bytes, allowed {limit}")
    return path.read_bytes()


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    return read_npz(path, hint=_REBUILD)


def _check_golden(inputs: NDArray[Any], codes: Mapping[str, NDArray[Any]], output: NDArray[Any]) -> None:
    if inputs.dtype != np.float32 or inputs.ndim != 4 or output.dtype != np.float32:
        raise BadInputError(
            (
                f"golden input is {inputs.dtype} {list(inputs.shape)} and output {output.dtype}, allowed "
                "float32 [N, 3, H, W] and float32"
            ),
            hint=_REBUILD,
        )
    if output.ndim == 0 or len(output) != len(inputs):
        raise BadInputError(
            f"golden output has shape {list(output.shape)}, allowed [{len(inputs)}, ...]", hint=_REBUILD
        )
    for name, array in codes.items():
        if array.dtype.kind not in "iu":
            raise BadInputError(f"golden codes {name} are {array.dtype}, allowed integers", hint=_REBUILD)


@contextmanager
def _writing(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"bundle {out} cannot be written: {error.strerror or error}",
            hint="free space on that disk, or choose another folder with --out DIR",
        ) from error
