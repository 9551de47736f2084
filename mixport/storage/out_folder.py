"""Where a result may be written: `--out` of the commands that leave a folder."""

from __future__ import annotations

from pathlib import Path

from mixport.records.errors import BadInputError


def is_free(out: Path, *, hint: str) -> bool:
    """True where nothing stands at `out`, or an empty folder; False for a folder that holds something.

    Args:
        out: as it was typed.
        hint: of the error.

    Raises:
        BadInputError: `out` is a link, a file, or has no name.
    """
    if not out.name:
        raise BadInputError(f"--out {out} has no name of its own", hint=hint)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BadInputError(f"--out {out} exists and is not a folder", hint=hint)
    return not out.is_dir() or not any(out.iterdir())
