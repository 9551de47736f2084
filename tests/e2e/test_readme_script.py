"""The words of README and documents, run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from mixport.records.targets import Target

pytestmark = pytest.mark.e2e

MARKER = "# check_bundle.py BUNDLE"


def written_script(repository: Path) -> str:
    blocks = re.findall(
        r"^```python\n(.*?)^```",
        (repository / "docs" / "bundle.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    (script,) = [block for block in blocks if block.startswith(MARKER)]
    return script


def check(repository: Path, bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "check_bundle.py"
    script.write_text(written_script(repository), encoding="utf-8")
    # From an empty folder, so that nothing of the checkout can be imported.
    return subprocess.run(
        [sys.executable, str(script), str(bundle)], capture_output=True, text=True, cwd=folder
    )


def test_the_script_needs_numpy_onnx_and_onnxruntime_only(repository: Path) -> None:
    imported = re.findall(r"^import (.+)$", written_script(repository), re.MULTILINE)
    names = {part.split()[0] for line in imported for part in line.split(", ")}
    assert names == {"json", "sys", "numpy", "onnx", "onnxruntime"}


def test_the_script_accepts_a_bundle(repository: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = check(repository, tiny_bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tiny_bundle / "golden" / "codes.npz") as codes:
        assert re.fullmatch(rf"{len(codes.files)} tensors, \d+ images, 0 codes differ\n", done.stdout)


def test_the_script_finds_one_wrong_code(repository: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    path = bundle / "golden" / "codes.npz"
    with np.load(path) as stored:
        codes = {name: stored[name].copy() for name in stored.files}
    first = next(iter(codes.values()))
    first.flat[0] ^= 1
    np.savez_compressed(path, **codes)
    done = check(repository, bundle, tmp_path)
    assert done.returncode == 1
    assert done.stdout.endswith(", 1 codes differ\n")


def test_the_first_command_is_the_one_that_is_checked(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^    mixport build$", readme, re.MULTILINE)
    checked = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(
        r'^step build mixport build --out "\$work/[a-z/]+" --cache "\$work/[a-z]+"$', checked, re.MULTILINE
    )


def test_the_readme_is_short(repository: Path) -> None:
    assert len((repository / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_links_lead_somewhere(repository: Path) -> None:
    documents = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md")]
    broken = [
        f"{document.relative_to(repository)}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        if "://" not in link and not (document.parent / link).exists()
    ]
    assert broken == []


def test_the_targets_document_names_every_field(repository: Path) -> None:
    text = (repository / "docs" / "targets.md").read_text(encoding="utf-8")
    missing = []
    for table, field in Target.model_fields.items():
        kind = field.annotation
        inner = [*kind.model_fields] if isinstance(kind, type) and issubclass(kind, BaseModel) else []
        names = [f"{table}.{one}" for one in inner] or [table]
        # A table that the document sends to the shipped file, or fields named beside their first one.
        missing += [
            name
            for name in names
            if not any(f"`{one}`" in text for one in (name, table, name.partition(".")[2] or name))
        ]
    about_the_file = {"schema_version", "title", "runtime", "sources", "name", "sha256"}
    assert set(missing) - about_the_file == set()
