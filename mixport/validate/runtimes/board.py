"""`ssh:HOST`: a board elsewhere that has python3, numpy and onnxruntime; nothing else needs to be there, and
nothing stays.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.pins import RUNNER, WEB_RUNNER
from mixport.validate.runtimes.processes import run_program
from mixport.validate.runtimes.protocol import ANSWER, OUTPUTS

SSH = "ssh:"

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20")
_SHORT_S, _COPY_S, _RUN_S = 60.0, 3600.0, 4 * 3600.0
#: A host or user@host; nothing that ssh would take for an option or a shell for a command.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_REMOTE_FOLDER = re.compile(r"/[A-Za-z0-9_./-]+")


def open_ssh(name: str) -> FolderRuntime:
    """The runtime on a host that ssh reaches without a password.

    Raises:
        BadInputError: the host's name has a form that is not allowed.
    """
    host = name.removeprefix(SSH)
    if not _HOST.fullmatch(host):
        raise BadInputError(
            f"runtime {name}: host {host!r} is not allowed, use a name of ~/.ssh/config or USER@HOST",
            hint="ssh:board1",
        )
    return FolderRuntime(name=name, execute=lambda folder: _execute(name, host, folder))


def _execute(name: str, host: str, folder: Path) -> None:
    what, hint = f"runtime {name}", f"ssh {host} python3 -c 'import onnxruntime, numpy'"

    def remote(command: str, timeout_s: float) -> str:
        return run_program(["ssh", *_OPTIONS, "--", host, command], what=what, timeout_s=timeout_s, hint=hint)

    # The last line: a login message may stand before it.
    lines = remote("mktemp -d", _SHORT_S).split("\n")
    there = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if not _REMOTE_FOLDER.fullmatch(there) or ".." in there:
        raise RuntimeUnavailableError(f"{what}: mktemp gave {there[:100]!r}, not a folder", hint=hint)
    try:
        sent = sorted(path for path in folder.iterdir() if path.name != WEB_RUNNER.name)
        run_program(
            ["scp", "-q", *_OPTIONS, "--", *sent, f"{host}:{there}/"], what=what, timeout_s=_COPY_S, hint=hint
        )
        remote(f"cd {shlex.quote(there)} && python3 {RUNNER.name} .", _RUN_S)
        # By name and one by one: what else the other side may offer is not taken.
        for wanted in (ANSWER, OUTPUTS):
            run_program(
                ["scp", "-q", *_OPTIONS, "--", f"{host}:{there}/{wanted}", folder / wanted],
                what=what,
                timeout_s=_COPY_S,
                hint=hint,
            )
    finally:
        remote(f"rm -rf -- {shlex.quote(there)}", _SHORT_S)
