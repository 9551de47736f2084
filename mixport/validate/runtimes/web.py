"""onnxruntime-web: fetched from npm, run by Node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes.fetching.cache_folder import installing, kept
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.names import WASM
from mixport.validate.runtimes.pins import ONNXRUNTIME_WEB, WEB_FILES, WEB_RUNNER
from mixport.validate.runtimes.processes import find_program, run_program

_TIMEOUT_S = 3600.0
_NPM_TIMEOUT_S = 1800.0
_PACKAGE = Path("node_modules") / "onnxruntime-web"


def folder_of(version: str | None = None) -> str:
    """Name of the package's folder in the cache; of the pinned version where None."""
    return f"onnxruntime-web-{version or ONNXRUNTIME_WEB}"


def find_dist(version: str | None = None) -> Path | None:
    """The dist folder of the fetched package, of the pinned version where None; None where it is not
    installed.
    """
    folder = kept(folder_of(version))
    return None if folder is None else folder / _PACKAGE / "dist"


def need_dist(name: str, version: str | None) -> Path:
    """The dist folder, for a runtime of this name. Raises RuntimeUnavailableError where it is not
    installed.
    """
    dist = find_dist(version)
    if dist is None:
        raise RuntimeUnavailableError(
            f"runtime {name} is not installed: onnxruntime-web {version or ONNXRUNTIME_WEB} is missing",
            hint=f"mixport runtimes install {name}",
        )
    return dist


def open_wasm(version: str | None = None) -> FolderRuntime:
    """The runtime under Node, of the pinned version where None. Raises RuntimeUnavailableError."""
    name = WASM if version is None else f"{WASM}@{version}"
    node = find_program("node", "nodejs")
    if node is None:
        raise RuntimeUnavailableError(
            f"runtime {name} cannot run: node is missing", hint="install Node.js 18 or newer: nodejs.org"
        )
    dist = need_dist(name, version)

    def execute(folder: Path) -> None:
        command = [node, folder / WEB_RUNNER.name, folder, dist]
        run_program(
            command,
            what=f"runtime {name}",
            timeout_s=_TIMEOUT_S,
            folder=folder,
            hint=f"mixport runtimes install {name}",
        )

    return FolderRuntime(name=name, execute=execute, version=version or ONNXRUNTIME_WEB)


def install_web(step: Callable[[int], None], version: str | None = None) -> None:
    """Fetch onnxruntime-web, the pinned one where None; only its WASM build is kept, a tenth of it. Raises
    RuntimeUnavailableError.
    """
    wanted = version or ONNXRUNTIME_WEB
    npm = find_program("npm")
    if npm is None:
        raise RuntimeUnavailableError(
            "npm is not here, which fetches onnxruntime-web", hint="install Node.js 18 or newer: nodejs.org"
        )
    with installing(folder_of(version)) as folder:
        run_program(
            # No package's scripts run: nothing that is kept needs one.
            [
                *(
                    npm,
                    "install",
                    "--prefix",
                    folder,
                    "--ignore-scripts",
                    "--no-audit",
                    "--no-fund",
                    "--loglevel=error",
                ),
                f"onnxruntime-web@{wanted}",
            ],
            what=f"fetching onnxruntime-web {wanted}",
            timeout_s=_NPM_TIMEOUT_S,
            folder=folder,
            hint="check that npm works here: npm ping",
        )
        _keep_wasm(folder / _PACKAGE, wanted)
    step(1)


def _keep_wasm(package: Path, wanted: str) -> None:
    try:
        version = json.loads((package / "package.json").read_text(encoding="utf-8")).get("version")
    except (OSError, ValueError) as error:
        raise RuntimeUnavailableError(
            f"npm left no readable onnxruntime-web: {error}", hint="mixport runtimes install wasm"
        ) from error
    missing = [name for name in WEB_FILES if not (package / "dist" / name).is_file()]
    if missing or version != wanted:
        what = f"no {missing[0]}" if missing else f"version {version}"
        raise RuntimeUnavailableError(
            f"npm left {what} of onnxruntime-web {wanted}", hint="mixport runtimes install wasm"
        )
    for path in (package / "dist").iterdir():
        if path.name not in WEB_FILES:
            path.unlink()
    for name in ("lib", "docs"):
        shutil.rmtree(package / name, ignore_errors=True)
