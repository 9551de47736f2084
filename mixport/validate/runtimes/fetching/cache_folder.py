"""Where fetched runtimes are kept: outside every repository, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.storage.atomic import sweep, sync_tree, temporary_folder

_RECORD = "installed.json"


def cache_folder() -> Path:
    """MIXPORT_RUNTIMES, or mixport/runtimes in the user's cache folder.

    Raises:
        BadInputError: MIXPORT_RUNTIMES starts with the ~ of a user that does not exist.
    """
    chosen = os.environ.get("MIXPORT_RUNTIMES")
    if chosen:
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:
            raise BadInputError(
                f"MIXPORT_RUNTIMES is {chosen!r}: no such user", hint="set MIXPORT_RUNTIMES to a folder"
            ) from error
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "mixport" / "runtimes"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mixport" / "runtimes"
    base = os.environ.get("XDG_CACHE_HOME")
    return (
        (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "mixport" / "runtimes"
    )


def kept(name: str) -> Path | None:
    """Folder of a part that was installed whole, None where there is none."""
    folder = cache_folder() / name
    return folder if (folder / _RECORD).is_file() else None


@contextlib.contextmanager
def installing(name: str) -> Generator[Path]:
    """A folder to fill; it gets its name, and counts as installed, only when the block ends without an error.

    Raises:
        RuntimeUnavailableError: the cache folder cannot be written.
    """
    parent = cache_folder()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        with temporary_folder(parent, label=name) as folder:
            yield folder
            (folder / _RECORD).write_text(json.dumps({"name": name}), encoding="utf-8")
            sync_tree(folder)
            # Another process may have been quicker; its folder is as good.
            if kept(name) is None:
                folder.rename(parent / name)
    except OSError as error:
        raise RuntimeUnavailableError(
            f"runtimes cannot be written to {parent}: {error}",
            hint="set MIXPORT_RUNTIMES to a folder with room",
        ) from error
