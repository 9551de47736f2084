"""Does a change of the code leave model.onnx as it was? Nine builds by two revisions, SHA-256 beside SHA-256.

    python -m tests.same_bytes OLD_REV [--data DIR] [--work DIR] [--case WORD ...]

OLD_REV is checked out beside this folder's own code; both build through `mixport.build`, each in a process
and a cache of its own, on one machine. DIR is the data folder of the tests (default ../shared/data). Prints
one line a build and exits with 1 where any differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixport.records.fingerprint import sha256_file
from tests.benchmarks.accuracy import cases

HERE = Path(__file__).resolve().parents[1]

_STEPS = 60
"""Steps a unit where codes are learned: enough for every part of the loop to run."""

_BUILD = """import json, sys, pathlib
import mixport
words = json.load(sys.stdin)
paths = words["paths"]
options = {name: pathlib.Path(value) if name in paths else value for name, value in words["options"].items()}
mixport.build(words["model"], **options)
"""


def builds(data: Path, work: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, MODEL, options): rounded and learned codes, a CNN, a MobileNet, a transformer, a budget, and
    runtimes' own kernels.
    """
    rows = {(model, options["scheme"]): options for _, model, options in cases(data, work)}
    resnet, mobile, vit = (
        rows[key]
        for key in (("builtin:cifar10-resnet20", "w4a8"), ("timm:mobilenetv2_100", "w4a8"), (_VIT, "w4a8"))
    )
    for scheme in ("w8a8", "w4a8", "w4a4", "w2a4"):
        yield f"resnet20-{scheme}", "builtin:cifar10-resnet20", {**resnet, "scheme": scheme, "iters": _STEPS}
    yield "mobilenetv2-w4a8", "timm:mobilenetv2_100", {**mobile, "iters": 0}
    for scheme in ("w8a8", "w4a4"):
        yield f"vit-{scheme}", _VIT, {**vit, "scheme": scheme, "iters": _STEPS}
    yield "resnet20-auto", "builtin:cifar10-resnet20", {**resnet, "scheme": "auto:0.10", "iters": 0}
    yield "vit-no-portable", _VIT, {**vit, "scheme": "w8a8", "iters": 0, "portable": False}


_VIT = "timm:vit_tiny_patch16_224"


def built_sha256(code: Path, name: str, model: str, options: dict[str, Any], *, work: Path) -> str:
    """Build with the code of a checkout; SHA-256 of model.onnx, or the last line of what the build said."""
    out = work / name
    given = {**options, "out": out, "cache": work / "cache", "validation_images": 2}
    paths = [key for key, value in given.items() if isinstance(value, Path)]
    words = {
        "model": model,
        "options": {key: str(value) if key in paths else value for key, value in given.items()},
        "paths": paths,
    }
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        cwd=code,
        env=environment,
        check=False,
    )
    if not (out / "model.onnx").is_file():
        return (done.stderr.strip() or "no model.onnx").splitlines()[-1]
    return sha256_file(out / "model.onnx")


def main() -> int:
    """Build all of it twice, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", metavar="OLD_REV", help="revision to compare with, e.g. main")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("MIXPORT_TEST_DATA", "../shared/data"))
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="folder for bundles and caches, default: a temporary one"
    )
    parser.add_argument("--case", action="append", help="only builds whose name holds this word")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (given.work or Path(folder)).resolve()
        checkout, different = Path(folder) / "old", 0
        subprocess.run(
            ["git", "-C", str(HERE), "worktree", "add", "--detach", "--quiet", str(checkout), given.old],
            check=True,
        )
        try:
            for side in ("old", "new"):
                (work / side).mkdir(parents=True, exist_ok=True)
            for name, model, options in builds(given.data.resolve(), work):
                if given.case and not any(word in name for word in given.case):
                    continue
                old, new = (
                    built_sha256(code, name, model, options, work=work / side)
                    for side, code in (("old", checkout), ("new", HERE))
                )
                different += old != new
                print(
                    f"{name:20} {'same' if old == new else 'DIFFERENT'}  {old[:16]}  {new[:16]}", flush=True
                )
        finally:
            subprocess.run(
                ["git", "-C", str(HERE), "worktree", "remove", "--force", str(checkout)], check=True
            )
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
