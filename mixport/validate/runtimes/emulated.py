"""Runtimes under qemu's user emulation: AVX2 without VNNI on the host's own wheel, and arm64 on the real
aarch64 wheel.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes.fetching.cache_folder import installing, kept
from mixport.validate.runtimes.fetching.debian import host_architecture, unpack_packages
from mixport.validate.runtimes.fetching.wheel import environment_of, fetch_wheels
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.pins import (
    NUMPY,
    ONNXRUNTIME,
    PYTHON_PACKAGES,
    QEMU_NAMES,
    QEMU_PACKAGES,
    RUNNER,
)
from mixport.validate.runtimes.processes import find_program, run_program

QEMU_FOLDER = "qemu-user"

_TIMEOUT_S = 4 * 3600.0
#: The runtime's processor library reads these; behind it, the host's would describe another architecture, and
#: crash it.
_CPUINFO = """processor\t: 0
model name\t: QEMU -cpu max
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd0c
CPU revision\t: 0

"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One emulated machine.

    Attributes:
        name: of the runtime.
        qemu: program, without `-static`.
        architecture: Debian's name.
        wheel: platform tag of the wheels.
        features: CPU features that it must have.
    """

    name: str
    qemu: str
    architecture: str
    wheel: str
    features: tuple[str, ...]

    @property
    def at_home(self) -> bool:
        """True where this Python itself can run under the emulator."""
        return host_architecture() == self.architecture and platform.system() == "Linux"

    def folder(self, version: str | None = None) -> str:
        """Name of its root folder in the cache; with the pinned onnxruntime where None."""
        return f"{self.architecture}-onnxruntime-{version or ONNXRUNTIME}-numpy-{NUMPY}"


X64_AVX2 = Machine(
    name="x64-avx2",
    qemu="qemu-x86_64",
    architecture="amd64",
    wheel="manylinux_2_28_x86_64",
    features=("avx2",),
)
ARM64 = Machine(
    name="arm64",
    qemu="qemu-aarch64",
    architecture="arm64",
    wheel="manylinux_2_28_aarch64",
    features=("asimddp",),
)


def find_qemu(machine: Machine) -> str | None:
    """Path of the emulator: the fetched one, or one on PATH."""
    folder = kept(QEMU_FOLDER)
    if folder is not None and (folder / machine.qemu).is_file():
        return str(folder / machine.qemu)
    return find_program(f"{machine.qemu}-static", machine.qemu)


def open_emulated(machine: Machine, version: str | None = None) -> FolderRuntime:
    """The runtime.

    Args:
        machine: which.
        version: of onnxruntime; the pinned one where None, or, on the host's own architecture, the installed
            one.

    Raises:
        RuntimeUnavailableError: the emulator or what it runs is not installed.
    """
    name = machine.name if version is None else f"{machine.name}@{version}"
    hint = f"mixport runtimes install {name}"
    qemu = find_qemu(machine)
    if qemu is None:
        raise RuntimeUnavailableError(
            f"runtime {name} is not installed: {machine.qemu}-static is missing", hint=hint
        )
    base = [qemu, "-cpu", "max"]
    if machine.at_home:
        execute = _executor(name, [*base, sys.executable], environment_of(version, runtime=name))
        return FolderRuntime(
            name=name, execute=execute, features=machine.features, version=version, emulated=True
        )
    root = kept(machine.folder(version))
    if root is None:
        raise RuntimeUnavailableError(
            f"runtime {name} is not installed: {machine.folder(version)} is missing", hint=hint
        )
    command = [*base, "-L", str(root / "sysroot"), str(_python(root / "sysroot"))]
    environment = {"PYTHONPATH": str(root / "site"), "PYTHONNOUSERSITE": "1"}
    execute = _executor(name, command, environment)
    return FolderRuntime(
        name=name, execute=execute, features=machine.features, version=version or ONNXRUNTIME, emulated=True
    )


def install_qemu(step: Callable[[int], None]) -> None:
    """Fetch the emulator for this host. Raises RuntimeUnavailableError."""
    architecture = host_architecture()
    if architecture is None or platform.system() != "Linux":
        raise RuntimeUnavailableError(
            f"user emulation does not run on {platform.system()} {platform.machine()}", hint="use Linux"
        )
    with installing(QEMU_FOLDER) as folder:
        unpack_packages(
            QEMU_PACKAGES, architecture=architecture, into=folder / "root", workdir=folder / "apt"
        )
        for name in QEMU_NAMES:
            binaries = folder / "root" / "usr" / "bin"
            found = next(
                (binaries / text for text in (f"{name}-static", name) if (binaries / text).is_file()), None
            )
            if found is None:
                raise RuntimeUnavailableError(
                    f"package {', '.join(QEMU_PACKAGES)} holds no {name}",
                    hint="apt-get install qemu-user-static",
                )
            shutil.copy2(found, folder / name)
        for name in ("root", "apt"):
            shutil.rmtree(folder / name)
    step(1)


def install_machine(machine: Machine, step: Callable[[int], None], version: str | None = None) -> None:
    """Fetch a Python of the architecture and the wheels, the pinned onnxruntime where None. Raises
    RuntimeUnavailableError.
    """
    with installing(machine.folder(version)) as folder:
        root = folder / "sysroot"
        unpack_packages(PYTHON_PACKAGES, architecture=machine.architecture, into=root, workdir=folder / "apt")
        shutil.rmtree(folder / "apt")
        step(1)
        if machine.architecture == "arm64":
            _describe_processor(root)
        python = re.sub(r"^python", "", _python(root).name)
        wanted = (f"onnxruntime=={version or ONNXRUNTIME}", f"numpy=={NUMPY}")
        fetch_wheels(
            wanted,
            ("--platform", machine.wheel, "--python-version", python, "--target", str(folder / "site")),
            what=f"fetching {' and '.join(wanted)} for {machine.wheel}, Python {python}",
        )
        step(1)


def _executor(name: str, command: list[str], environment: Mapping[str, str]) -> Callable[[Path], None]:
    def execute(folder: Path) -> None:
        run_program(
            [*command, folder / RUNNER.name, folder],
            what=f"runtime {name}",
            timeout_s=_TIMEOUT_S,
            environment={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
            folder=folder,
            hint=f"mixport runtimes install {name}",
        )

    return execute


def _python(root: Path) -> Path:
    found = [
        path
        for path in sorted((root / "usr" / "bin").glob("python3.*"))
        if re.fullmatch(r"python3\.\d+", path.name)
    ]
    if not found:
        raise RuntimeUnavailableError(f"{root} holds no Python", hint="mixport runtimes install arm64")
    return found[-1]


def _describe_processor(root: Path) -> None:
    processors = root / "sys" / "devices" / "system" / "cpu"
    processors.mkdir(parents=True)
    for name in ("present", "possible", "online"):
        (processors / name).write_text("0\n", encoding="ascii")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(_CPUINFO, encoding="ascii")
