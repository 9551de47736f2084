"""Debian and Ubuntu packages of any architecture, unpacked into a folder with apt-get and dpkg-deb, without
root.
"""

from __future__ import annotations

import platform
from pathlib import Path

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes.processes import find_program, run_program

_TIMEOUT_S = 1800.0
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
#: Architectures that Ubuntu's main mirrors hold; the others are on its ports mirror.
_UBUNTU_MAIN = frozenset({"amd64", "i386"})
_UBUNTU_KEYS = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"


def host_architecture() -> str | None:
    """Debian's name of this machine's architecture, None where it has none here."""
    return _ARCHITECTURES.get(platform.machine().lower())


def missing_clients() -> str:
    """The first program that fetching needs and that is not here, empty where all are."""
    return next((name for name in ("apt-get", "dpkg-deb") if find_program(name) is None), "")


def unpack_packages(packages: tuple[str, ...], *, architecture: str, into: Path, workdir: Path) -> None:
    """Fetch packages with everything they depend on, and unpack them; nothing is installed and no script of
    theirs runs.

    apt works on a state folder of its own, with the machine's sources and keys, as if nothing were installed.

    Args:
        packages: names.
        architecture: Debian's name, e.g. arm64.
        into: root folder of the unpacked tree.
        workdir: for lists and archives; may be deleted afterwards.

    Raises:
        RuntimeUnavailableError: no apt-get, or it fails.
    """
    missing = missing_clients()
    if missing:
        raise RuntimeUnavailableError(
            f"{missing} is not here, which fetches {', '.join(packages)}",
            hint="use a Debian or Ubuntu machine, or container",
        )
    apt = _apt(workdir, architecture)
    what = f"fetching {', '.join(packages)} for {architecture}"
    run_program(
        [*apt, "update"], what=what, timeout_s=_TIMEOUT_S, hint="check the machine's network and /etc/apt"
    )
    run_program(
        [*apt, "install", "--download-only", "--yes", *packages],
        what=what,
        timeout_s=_TIMEOUT_S,
        hint="check the machine's /etc/apt",
    )
    archives = sorted((workdir / "archives").glob("*.deb"))
    if not archives:
        raise RuntimeUnavailableError(
            f"{what}: apt-get gave no packages", hint="check the machine's /etc/apt"
        )
    into.mkdir(parents=True, exist_ok=True)
    # A system whose /usr is merged has these links before any package; programs name their loader by the
    # short path.
    for name in ("bin", "sbin", "lib", "lib64"):
        (into / "usr" / name).mkdir(parents=True, exist_ok=True)
        (into / name).symlink_to(Path("usr") / name)
    for archive in archives:
        run_program(
            ["dpkg-deb", "--extract", archive, into], what=f"unpacking {archive.name}", timeout_s=_TIMEOUT_S
        )


def _apt(workdir: Path, architecture: str) -> list[str]:
    """apt-get with a configuration that is read after the machine's own."""
    for name in ("lists/partial", "archives/partial"):
        (workdir / name).mkdir(parents=True)
    (workdir / "status").touch()
    lines = [
        f'Dir::State "{workdir}";',
        f'Dir::State::lists "{workdir / "lists"}";',
        f'Dir::State::status "{workdir / "status"}";',
        f'Dir::Cache "{workdir}";',
        f'Dir::Cache::archives "{workdir / "archives"}";',
        f'APT::Architecture "{architecture}";',
        # Without these, the lists of the machine's other architectures are fetched as well.
        "#clear APT::Architectures;",
        f'APT::Architectures {{ "{architecture}"; }};',
        "#clear APT::Update::Post-Invoke;",
        "#clear APT::Update::Post-Invoke-Success;",
        "#clear DPkg::Post-Invoke;",
        'APT::Install-Recommends "false";',
        'APT::Get::AllowUnauthenticated "false";',
        'Acquire::Languages "none";',
        'Debug::NoLocking "true";',
        # The folder may lie where only its owner may read.
        'APT::Sandbox::User "root";',
    ]
    sources = _ubuntu_ports(architecture)
    if sources:
        (workdir / "sources.list").write_text(sources, encoding="utf-8")
        lines += [f'Dir::Etc::sourcelist "{workdir / "sources.list"}";', 'Dir::Etc::sourceparts "-";']
    (workdir / "apt.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["apt-get", "--quiet=2", "--config-file", str(workdir / "apt.conf")]


def _ubuntu_ports(architecture: str) -> str:
    """A sources.list for what Ubuntu's main mirrors do not hold; empty elsewhere, where the machine's own
    sources serve.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    host = host_architecture()
    # On a machine of a ports architecture itself the main mirror is what its sources lack.
    if release.get("ID") != "ubuntu" or (architecture in _UBUNTU_MAIN) == (host in _UBUNTU_MAIN):
        return ""
    mirror = (
        "http://archive.ubuntu.com/ubuntu"
        if architecture in _UBUNTU_MAIN
        else "http://ports.ubuntu.com/ubuntu-ports"
    )
    code = release.get("VERSION_CODENAME", "")
    suites = (code, f"{code}-updates", f"{code}-security")
    return "".join(f"deb [signed-by={_UBUNTU_KEYS}] {mirror} {suite} main universe\n" for suite in suites)
