"""All runtimes by name: open one, say what is here, fetch what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

from mixport.environment import cpu_name
from mixport.errors import BadInputError, RuntimeUnavailableError
from mixport.progress import Progress, SilentProgress
from mixport.runtimes import board, browser, local, web
from mixport.runtimes.cache_folder import kept
from mixport.runtimes.emulated import ARM64, X64_AVX2, Machine, find_qemu, install_machine, install_qemu, open_emulated
from mixport.runtimes.folder_runtime import FolderRuntime
from mixport.runtimes.pins import ONNXRUNTIME, ONNXRUNTIME_WEB
from mixport.runtimes.processes import find_program

NAMES = (local.NATIVE, X64_AVX2.name, ARM64.name, web.NAME, browser.NAME)
"""Runtimes with a name of their own, in the order they are listed."""
FORMS = (*NAMES, "ssh:HOST", "command:LINE")
"""What `--runtime` takes, for messages."""

# Measured on Debian 12: package lists are 10 MB of the first two each.
_QEMU_MB, _ROOT_MB, _WEB_MB = 73, 63, 35

_OPENERS: tuple[tuple[str, Callable[[], FolderRuntime]], ...] = (
    (local.NATIVE, local.open_native),
    (X64_AVX2.name, lambda: open_emulated(X64_AVX2)),
    (ARM64.name, lambda: open_emulated(ARM64)),
    (web.NAME, web.open_wasm),
    (browser.NAME, browser.open_chromium),
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
    """Raise BadInputError for the first name that no runtime has, or whose host or command line has a wrong form."""
    for name in names:
        if name.startswith(board.SSH):
            board.open_ssh(name)
        elif name.startswith(local.COMMAND):
            local.open_command(name)
        elif name not in NAMES:
            raise BadInputError(f"unknown runtime {name!r}, known: {', '.join(FORMS)}", hint="mixport runtimes list")


def open_runtimes(names: Sequence[str]) -> tuple[FolderRuntime, ...]:
    """Runtimes by name, ready to run; nothing is started, and onnxruntime is not imported.

    Raises:
        BadInputError: an unknown name.
        RuntimeUnavailableError: one that is not installed; the hint says how to get it.
    """
    check_names(names)
    return tuple(_open(name) for name in dict.fromkeys(names))


def _open(name: str) -> FolderRuntime:
    if name.startswith(board.SSH):
        return board.open_ssh(name)
    if name.startswith(local.COMMAND):
        return local.open_command(name)
    return dict(_OPENERS)[name]()


def survey() -> tuple[RuntimeEntry, ...]:
    """What is here of the runtimes with a name of their own. Starts none of them."""
    own = _own_version()
    emulated = f"onnxruntime {ONNXRUNTIME}"
    entries: list[RuntimeEntry] = []
    for name, opener in _OPENERS:
        missing, hint = "", None
        try:
            opener()
        except RuntimeUnavailableError as error:
            missing, hint = str(error), error.hint
        if name == local.NATIVE:
            runtime, where = own, cpu_name()
        elif name in (X64_AVX2.name, ARM64.name):
            machine = X64_AVX2 if name == X64_AVX2.name else ARM64
            runtime, where = own if machine.at_home else emulated, f"{machine.qemu} -cpu max"
        else:
            runtime = f"onnxruntime-web {ONNXRUNTIME_WEB}"
            programs = ("node", "nodejs") if name == web.NAME else browser.BROWSERS
            where = find_program(*programs) or programs[0]
        entries.append(
            RuntimeEntry(
                name=name, present=not missing, runtime=runtime, where=where, missing=missing, hint=hint, download_mb=download_mb([name])
            )
        )
    return tuple(entries)


def download_mb(names: Sequence[str]) -> int:
    """About how many megabytes installing these runtimes fetches; 0 where nothing is missing."""
    return sum(part.megabytes for part in _parts(names))


def install(names: Sequence[str], *, progress: Progress | None = None) -> None:
    """Fetch what these runtimes lack, with the machine's own package clients, into the cache folder.

    Args:
        names: of `NAMES`.
        progress: told after every part.

    Raises:
        BadInputError: a name that cannot be installed.
        RuntimeUnavailableError: a client is missing or fails; what was fetched whole stays.
    """
    for name in names:
        if name not in NAMES:
            raise BadInputError(f"runtime {name!r} cannot be installed, known: {', '.join(NAMES)}", hint="mixport runtimes list")
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
    parts: list[_Part] = []
    machines = [machine for machine in (X64_AVX2, ARM64) if machine.name in names]
    if any(find_qemu(machine) is None for machine in machines):
        parts.append(_Part(steps=1, megabytes=_QEMU_MB, fetch=install_qemu))
    for machine in machines:
        if not machine.at_home and kept(machine.folder) is None:
            parts.append(_Part(steps=2, megabytes=_ROOT_MB, fetch=_root(machine)))
    if {web.NAME, browser.NAME} & set(names) and web.find_dist() is None:
        parts.append(_Part(steps=1, megabytes=_WEB_MB, fetch=web.install_web))
    return parts


def _root(machine: Machine) -> Callable[[Callable[[int], None]], None]:
    return lambda step: install_machine(machine, step)


def _own_version() -> str:
    try:
        return f"onnxruntime {metadata.version('onnxruntime')}"
    except metadata.PackageNotFoundError:
        return "onnxruntime"
