"""mixport doctor: what is installed, what is missing, what to type."""

from __future__ import annotations

from pathlib import Path

from mixport import __version__
from mixport.cli.console import Console
from mixport.cli.options.shared import CacheOption, JsonFlag
from mixport.pipeline.doctor import examine
from mixport.records.errors import ExitCode


def doctor(cache: CacheOption = Path("calib_cache"), json: JsonFlag = False) -> int:
    """Say what is installed, what is missing, and what to type. Exit code 1 where a build cannot work."""
    console = Console(json=json)
    findings = examine(cache=cache)
    missing = [item for item in findings if item.status == "missing"]
    if json:
        console.document(
            {
                "mixport": __version__,
                "ready": not missing,
                "findings": [
                    {
                        "what": item.what,
                        "status": item.status,
                        "value": item.value,
                        "note": item.note,
                        "hint": item.hint,
                    }
                    for item in findings
                ],
            }
        )
        return ExitCode.USER if missing else ExitCode.DONE
    console.line(f"mixport {__version__}")
    console.table(
        ["", "what", "found", ""], [[item.status, item.what, item.value, item.note] for item in findings]
    )
    for item in findings:
        if item.hint is not None:
            console.hint(item.hint)
    console.line("something that a build needs is missing" if missing else "ready: mixport build --help")
    return ExitCode.USER if missing else ExitCode.DONE
