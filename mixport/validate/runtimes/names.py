"""Names of runtimes: NAME, or NAME@VERSION for another version of what it runs than the pinned one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mixport.records.errors import BadInputError

NATIVE, WASM, CHROMIUM = "native", "wasm", "wasm-chromium"
QNN = ("qnn-htp68", "qnn-htp73")
ONNXRUNTIMES = (NATIVE, "x64-avx2", "arm64", WASM, CHROMIUM)
"""Those that give onnxruntime's codes."""
NAMES = (*ONNXRUNTIMES, *QNN)
"""Runtimes with a name of their own, in the order they are listed."""

#: It becomes part of a folder's name and of what pip and npm are asked for.
_VERSION = re.compile(r"\d+\.\d+\.\d+[0-9A-Za-z.-]{0,60}")


@dataclass(frozen=True, kw_only=True)
class RuntimeName:
    """A name in its two parts.

    Attributes:
        base: of NAMES; the whole name where a runtime has no versions here, as `ssh:user@board`.
        version: of onnxruntime or onnxruntime-web; None where the name has none.
    """

    base: str
    version: str | None = None


def split_name(name: str) -> RuntimeName:
    """The parts of a name, which need not be one of a runtime.

    Raises:
        BadInputError: a version that is none, as in `arm64@latest`.
    """
    base, at, version = name.partition("@")
    if not at or base not in NAMES:
        return RuntimeName(base=name)
    if _VERSION.fullmatch(version) is None:
        raise BadInputError(
            f"runtime {name!r} has version {version!r}, allowed is three numbers as in {base}@1.31.1",
            hint="mixport runtimes list",
        )
    return RuntimeName(base=base, version=version)
