"""mixport.toml: the options of a command in a file, under those typed on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.checked import Checked, check_names
from mixport.pipeline.options.model_options import ModelOptions
from mixport.pipeline.options.train_options import SweepOptions, TrainOptions
from mixport.records.errors import BadInputError, BadOptionError

Options = TypeVar("Options", bound=Checked)

CONFIG_FILE = "mixport.toml"
_MAX_CONFIG_BYTES = 1 << 20


TABLES: Mapping[str, type[ModelOptions]] = MappingProxyType(
    {"build": BuildOptions, "train": TrainOptions, "sweep": SweepOptions}
)
"""Commands that have a table of their own."""


def read_config(path: Path | None, *, command: str = "build") -> dict[str, object]:
    """Options of the command's table of a TOML file; names in snake_case or kebab-case, [build.model-arg] a
    table of its own.

    Args:
        path: the file; None reads mixport.toml of the working directory where there is one.
        command: build, train or sweep.

    Raises:
        BadInputError: the file is missing, too large, or no TOML.
        BadOptionError: a table or a name that mixport does not know.
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
    for name, table in tables.items():
        if name not in TABLES:
            raise BadOptionError(
                f"{path}: unknown table or key {name!r} at the top, allowed: "
                f"{', '.join(f'[{one}]' for one in TABLES)}",
                hint="put options under [build]",
            )
        if not isinstance(table, dict):
            raise BadOptionError(
                f"{path}: {name} is a value, allowed: a table", hint=f"write [{name}] on a line of its own"
            )
    values = {str(name).replace("-", "_"): value for name, value in tables.get(command, {}).items()}
    check_names(TABLES[command], values, where=f"{path}: ", command=command)
    return values


def merge(
    config: Mapping[str, object], given: Mapping[str, object], kind: type[Options] = BuildOptions
) -> Options:
    """The file's values under the ones typed on the command line; None and empty repeatables count as not
    typed.
    """
    typed = {
        name: value for name, value in given.items() if value is not None and value != [] and value != ()
    }
    return kind.of({**config, **typed})
