"""onnxruntime-web: fetched from npm, run by Node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mixport.errors import RuntimeUnavailableError
from mixport.runtimes.cache_folder import installing, kept
from mixport.runtimes.folder_runtime import FolderRuntime
from mixport.runtimes.pins import ONNXRUNTIME_WEB, WEB_FILES, WEB_RUNNER
from mixport.runtimes.processes import find_program, run_program

NAME = "wasm"
FOLDER = f"onnxruntime-web-{ONNXRUNTIME_WEB}"

_TIMEOUT_S = 3600.0
_NPM_TIMEOUT_S = 1800.0
_PACKAGE = Path("node_modules") / "onnxruntime-web"


def find_dist() -> Path | None:
    """The dist folder of the fetched package, None where it is not installed."""
    folder = kept(FOLDER)
    return None if folder is None else folder / _PACKAGE / "dist"


def open_wasm() -> FolderRuntime:
    """The runtime under Node. Raises RuntimeUnavailableError."""
    node, dist = find_program("node", "nodejs"), find_dist()
    if node is None:
        raise RuntimeUnavailableError(f"runtime {NAME} cannot run: node is missing", hint="install Node.js 18 or newer: nodejs.org")
    if dist is None:
        raise RuntimeUnavailableError(
            f"runtime {NAME} is not installed: onnxruntime-web {ONNXRUNTIME_WEB} is missing", hint=f"mixport runtimes install {NAME}"
        )

    def execute(folder: Path) -> None:
        command = [node, folder / WEB_RUNNER.name, folder, dist]
        run_program(command, what=f"runtime {NAME}", timeout_s=_TIMEOUT_S, folder=folder, hint=f"mixport runtimes install {NAME}")

    return FolderRuntime(name=NAME, execute=execute)


def install_web(step: Callable[[int], None]) -> None:
    """Fetch onnxruntime-web; only its WASM build is kept, a tenth of the package. Raises RuntimeUnavailableError."""
    npm = find_program("npm")
    if npm is None:
        raise RuntimeUnavailableError("npm is not here, which fetches onnxruntime-web", hint="install Node.js 18 or newer: nodejs.org")
    with installing(FOLDER) as folder:
        run_program(
            # No package's scripts run: nothing that is kept needs one.
            [
                *(npm, "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),
                f"onnxruntime-web@{ONNXRUNTIME_WEB}",
            ],
            what=f"fetching onnxruntime-web {ONNXRUNTIME_WEB}",
            timeout_s=_NPM_TIMEOUT_S,
            folder=folder,
            hint="check that npm works here: npm ping",
        )
        _keep_wasm(folder / _PACKAGE)
    step(1)


def _keep_wasm(package: Path) -> None:
    try:
        version = json.loads((package / "package.json").read_text(encoding="utf-8")).get("version")
    except (OSError, ValueError) as error:
        raise RuntimeUnavailableError(f"npm left no readable onnxruntime-web: {error}", hint="mixport runtimes install wasm") from error
    missing = [name for name in WEB_FILES if not (package / "dist" / name).is_file()]
    if missing or version != ONNXRUNTIME_WEB:
        what = f"no {missing[0]}" if missing else f"version {version}"
        raise RuntimeUnavailableError(f"npm left {what} of onnxruntime-web {ONNXRUNTIME_WEB}", hint="mixport runtimes install wasm")
    for path in (package / "dist").iterdir():
        if path.name not in WEB_FILES:
            path.unlink()
    for name in ("lib", "docs"):
        shutil.rmtree(package / name, ignore_errors=True)
