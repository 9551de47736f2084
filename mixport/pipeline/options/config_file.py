"""mixport.toml: the options of a build in a file, under those typed on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixport.pipeline.options.build_options import BuildOptions, check_names
from mixport.records.errors import BadInputError, BadOptionError

CONFIG_FILE = "mixport.toml"
_MAX_CONFIG_BYTES = 1 << 20


def read_config(path: Path | None) -> dict[str, object]:
    """Options of the [build] table of a TOML file; names in snake_case or kebab-case, [build.model-arg] a
    table of its own.

    Args:
        path: the file; None reads mixport.toml of the working directory where there is one.

    Raises:
        BadInputError: the file is missing, too large, or no TOML.
        BadOptionError: a table or a name that build does not know.
    """
    if path is None:
        path = Path(CONFIG_FILE)
        if not path.is_file():
            return {}
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise BadInputError(
                f"--config {path} is larger than {_MAX_CONFIG_BYTES} bytes", hint="check the path"
            )
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(
            f"--config {path} cannot be read: {error}", hint="check the path and the TOML syntax"
        ) from error
    for name in tables:
        if name != "build":
            raise BadOptionError(
                f"{path}: unknown table or key {name!r} at the top, allowed: [build]",
                hint="put options under [build]",
            )
    if not isinstance(tables.get("build", {}), dict):
        raise BadOptionError(
            f"{path}: build is a value, allowed: a table", hint="write [build] on a line of its own"
        )
    values = {str(name).replace("-", "_"): value for name, value in tables.get("build", {}).items()}
    check_names(values, where=f"{path}: ")
    return values


def merge(config: Mapping[str, object], given: Mapping[str, object]) -> BuildOptions:
    """The file's values under the ones typed on the command line; None and empty repeatables count as not
    typed.
    """
    typed = {
        name: value for name, value in given.items() if value is not None and value != [] and value != ()
    }
    return BuildOptions.of({**config, **typed})
