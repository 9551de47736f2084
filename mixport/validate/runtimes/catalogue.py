"""All runtimes by name: open one, say what is here, fetch what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.records.machine import cpu_name
from mixport.records.progress import Progress, SilentProgress
from mixport.validate.runtimes import board, browser, local, qnn, web
from mixport.validate.runtimes.emulated import (
    ARM64,
    QEMU_FOLDER,
    X64_AVX2,
    Machine,
    find_qemu,
    install_machine,
    install_qemu,
    open_emulated,
)
from mixport.validate.runtimes.fetching import wheel
from mixport.validate.runtimes.fetching.cache_folder import kept
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.names import CHROMIUM, NAMES, NATIVE, QNN, WASM, split_name
from mixport.validate.runtimes.pins import ONNXRUNTIME, ONNXRUNTIME_OF_QNN, ONNXRUNTIME_QNN, ONNXRUNTIME_WEB
from mixport.validate.runtimes.processes import find_program

FORMS = (*NAMES, "NAME@VERSION", "ssh:HOST", "command:LINE")
"""What `--runtime` takes, for messages."""

# Measured on Debian 12: package lists are 10 MB of the first two each.
_QEMU_MB, _ROOT_MB, _WEB_MB, _WHEEL_MB, _QNN_MB = 73, 63, 35, 25, 120


def _open_qnn(name: str, version: str | None) -> FolderRuntime:
    if version is not None:
        raise BadInputError(
            f"runtime {name} has one version, onnxruntime-qnn {ONNXRUNTIME_QNN}", hint=f"--runtime {name}"
        )
    return qnn.open_qnn(name)


_OPENERS: Mapping[str, Callable[[str | None], FolderRuntime]] = MappingProxyType(
    {
        NATIVE: local.open_native,
        X64_AVX2.name: lambda version: open_emulated(X64_AVX2, version),
        ARM64.name: lambda version: open_emulated(ARM64, version),
        WASM: web.open_wasm,
        CHROMIUM: browser.open_chromium,
        **{name: partial(_open_qnn, name) for name in QNN},
    }
)


@dataclass(frozen=True, kw_only=True)
class RuntimeEntry:
    """One line of `mixport runtimes list`.

    Attributes:
        name: as in `--runtime NAME`.
        present: True where it can run now.
        runtime: library, and its version.
        where: processor, emulator or program it runs on.
        missing: what is missing, empty where it is present.
        hint: what to type, None where there is nothing to do.
        download_mb: about how much installing fetches, in megabytes; 0 where nothing is fetched.
    """

    name: str
    present: bool
    runtime: str
    where: str
    missing: str
    hint: str | None
    download_mb: int


def check_names(names: Iterable[str]) -> None:
    """Raise BadInputError for the first name that no runtime has, or whose version, host or command line has
    a wrong form.
    """
    for name in names:
        if name.startswith(board.SSH):
            board.open_ssh(name)
        elif name.startswith(local.COMMAND):
            local.open_command(name)
        elif split_name(name).base not in NAMES:
            raise BadInputError(
                f"unknown runtime {name!r}, known: {', '.join(FORMS)}", hint="mixport runtimes list"
            )


def open_runtimes(names: Sequence[str], *, arithmetic: str | None = None) -> tuple[FolderRuntime, ...]:
    """Runtimes by name, ready to run; nothing is started, and onnxruntime is not imported.

    Args:
        names: of runtimes.
        arithmetic: whose codes a file is made for; None opens every runtime.

    Raises:
        BadInputError: an unknown name, or a runtime that computes other codes by design.
        RuntimeUnavailableError: one that is not installed; the hint says how to get it.
    """
    check_names(names)
    opened = tuple(_open(name) for name in dict.fromkeys(names))
    for one in opened:
        if arithmetic not in (None, one.arithmetic):
            raise BadInputError(
                f"runtime {one.name} computes the codes of {one.arithmetic}, the file is made for those of "
                f"{arithmetic}: they differ, and say nothing of each other",
                hint="mixport runtimes list",
            )
    return opened


def _open(name: str) -> FolderRuntime:
    if name.startswith(board.SSH):
        return board.open_ssh(name)
    if name.startswith(local.COMMAND):
        return local.open_command(name)
    parts = split_name(name)
    return _OPENERS[parts.base](parts.version)


def survey(names: Sequence[str] = NAMES) -> tuple[RuntimeEntry, ...]:
    """What is here of runtimes with a name of their own, one entry a name. Starts none of them."""
    return tuple(_look_at(name) for name in dict.fromkeys(names))


def _look_at(name: str) -> RuntimeEntry:
    missing, hint = "", None
    try:
        _open(name)
    except RuntimeUnavailableError as error:
        missing, hint = str(error), error.hint
    base, version = split_name(name).base, split_name(name).version
    machine = next((one for one in (X64_AVX2, ARM64) if one.name == base), None)
    if base == NATIVE or machine is not None:
        at_home = machine is None or machine.at_home
        runtime = f"onnxruntime {version or (wheel.own_version() or '' if at_home else ONNXRUNTIME)}".rstrip()
        where = cpu_name() if machine is None else f"{machine.qemu} -cpu max"
    elif base in QNN:
        runtime = f"onnxruntime {ONNXRUNTIME_OF_QNN}, onnxruntime-qnn {ONNXRUNTIME_QNN}"
        where = f"Qualcomm HTP simulator, arch {qnn.ARCHES[base]}"
    else:
        runtime = f"onnxruntime-web {version or ONNXRUNTIME_WEB}"
        programs = ("node", "nodejs") if base == WASM else browser.BROWSERS
        where = find_program(*programs) or programs[0]
    return RuntimeEntry(
        name=name,
        present=not missing,
        runtime=runtime,
        where=where,
        missing=missing,
        hint=hint,
        download_mb=download_mb([name]),
    )


def download_mb(names: Sequence[str]) -> int:
    """About how many megabytes installing these runtimes fetches; 0 where nothing is missing."""
    return sum(part.megabytes for part in _parts(names))


def install(names: Sequence[str], *, progress: Progress | None = None) -> None:
    """Fetch what these runtimes lack, with the machine's own package clients, into the cache folder.

    Args:
        names: of `NAMES`, with or without a version.
        progress: told after every part.

    Raises:
        BadInputError: a name that cannot be installed.
        RuntimeUnavailableError: a client is missing or fails; what was fetched whole stays.
    """
    for name in names:
        if split_name(name).base not in NAMES:
            raise BadInputError(
                f"runtime {name!r} cannot be installed, known: {', '.join(NAMES)}",
                hint="mixport runtimes list",
            )
    parts = _parts(names)
    total = sum(part.steps for part in parts)
    with (progress or SilentProgress()).track("fetching runtimes", total=total, unit="parts") as advance:
        for part in parts:
            part.fetch(advance)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Something to fetch: in how many steps, about how many megabytes, and how."""

    steps: int
    megabytes: int
    fetch: Callable[[Callable[[int], None]], None]


def _parts(names: Sequence[str]) -> list[_Part]:
    """What these runtimes lack, each part once."""
    parts: dict[str, _Part] = {}  # by folder in the cache
    for name in map(split_name, names):
        machine = next((one for one in (X64_AVX2, ARM64) if one.name == name.base), None)
        if machine is not None and find_qemu(machine) is None:
            parts[QEMU_FOLDER] = _Part(steps=1, megabytes=_QEMU_MB, fetch=install_qemu)
        if machine is not None and not machine.at_home:
            if kept(machine.folder(name.version)) is None:
                parts[machine.folder(name.version)] = _Part(
                    steps=2, megabytes=_ROOT_MB, fetch=_root(machine, name.version)
                )
        elif machine is not None or name.base == NATIVE:
            if name.version is not None and not wheel.is_here(name.version):
                parts[wheel.folder_of(name.version)] = _Part(
                    steps=1, megabytes=_WHEEL_MB, fetch=_wheel(name.version)
                )
        elif name.base in QNN:
            if not qnn.is_here():
                parts[qnn.folder_of()] = _Part(steps=1, megabytes=_QNN_MB, fetch=qnn.install_qnn)
        elif web.find_dist(name.version) is None:
            parts[web.folder_of(name.version)] = _Part(steps=1, megabytes=_WEB_MB, fetch=_web(name.version))
    return list(parts.values())


def _root(machine: Machine, version: str | None) -> Callable[[Callable[[int], None]], None]:
    return lambda step: install_machine(machine, step, version)


def _wheel(version: str) -> Callable[[Callable[[int], None]], None]:
    return lambda step: wheel.install_wheel(version, step)


def _web(version: str | None) -> Callable[[Callable[[int], None]], None]:
    return lambda step: web.install_web(step, version)
