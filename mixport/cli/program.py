"""The mixport program: mounts the commands, and maps every way a run can end to an exit code, in one
place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Annotated

import typer

from mixport import __version__
from mixport.cli.commands import (
    bench,
    build,
    calib,
    conformance,
    doctor,
    inspect,
    runtimes,
    targets,
    validate,
)
from mixport.cli.console import Console
from mixport.cli.panels import PanelCommand
from mixport.records.errors import ExitCode, InvariantError, MixportError

#: System errors that a user can mend: no space, no permission, read-only, too large for a quota or a limit,
#: too long a name.
_USER_ERRNO = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EMFILE,
        errno.ENAMETOOLONG,
    }
)

app = typer.Typer(
    name="mixport",
    help="A float vision model in, a validated low-bit ONNX bundle out.",
    epilog=(
        "Exit codes: 0 done, 1 you can fix it, 2 usage, 3 validation or a gate failed, 70 our bug, 130 "
        "interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("build", cls=PanelCommand)(build.build)
app.command("validate")(validate.validate)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("conformance")(conformance.conformance)
app.command("doctor")(doctor.doctor)
app.add_typer(calib.app, name="calib")
app.add_typer(targets.app, name="targets")
app.add_typer(runtimes.app, name="runtimes")


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().line(f"mixport {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """A float vision model in, a validated low-bit ONNX bundle out."""


def main() -> None:
    """Entry point of the `mixport` script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give the process exit code. Errors are written, never raised."""
    console = Console(json="--json" in arguments, quiet="--quiet" in arguments)
    with _interrupts() as interrupted:
        code = _run(arguments, console, interrupted)
    if code == ExitCode.INTERRUPTED:
        return _fail(
            console, ExitCode.INTERRUPTED, "interrupted", "the same command goes on where it stopped", None
        )
    return code


@contextlib.contextmanager
def _interrupts() -> Generator[threading.Event]:
    """An event that tells whether Ctrl-C was pressed, also where a library turned KeyboardInterrupt into an
    error of its own.
    """
    interrupted = threading.Event()
    known = signal.getsignal(signal.SIGINT)
    # Another handler, or an ignored signal, is somebody's decision; handlers belong to the main thread.
    if known is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, known)


def _run(arguments: Sequence[str], console: Console, interrupted: threading.Event) -> int:
    try:
        code = app(args=[*arguments], prog_name="mixport", standalone_mode=False, obj=interrupted)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except MixportError as error:
        if interrupted.is_set():
            return ExitCode.INTERRUPTED
        return _fail(console, error.exit_code, str(error), error.hint, error)
    except typer.TyperException as error:
        if error.format_message().startswith("Usage:") and not console.json:
            console.note(error.format_message())
            return ExitCode.USAGE
        return _fail(console, ExitCode.USAGE, error.format_message(), _usage_hint(arguments), error)
    except OSError as error:
        if error.errno not in _USER_ERRNO:
            return _fail_bug(console, error)
        return _fail(
            console,
            ExitCode.USER,
            f"the system refused: {error}",
            "free some space or choose another --out or --cache",
            error,
        )
    except MemoryError as error:
        return _fail(
            console,
            ExitCode.USER,
            "not enough memory",
            "fewer --images, a smaller --input-size, or a larger machine",
            error,
        )
    except Exception as error:
        return ExitCode.INTERRUPTED if interrupted.is_set() else _fail_bug(console, error)
    return int(code or ExitCode.DONE)


def _fail_bug(console: Console, error: Exception) -> int:
    message = f"mixport met something it does not expect: {type(error).__name__}: {error}"
    hint = "this is our bug: please report it with this command and its output under MIXPORT_DEBUG=1"
    return _fail(console, ExitCode.BUG, message, hint, error)


def _fail(
    console: Console, code: ExitCode, message: str, hint: str | None, error: BaseException | None
) -> int:
    if isinstance(error, InvariantError) and hint is None:
        hint = "this is our bug: please report it with this command and its output under MIXPORT_DEBUG=1"
    if os.environ.get("MIXPORT_DEBUG") == "1" and error is not None:
        console.error("".join(traceback.format_exception(error)))
    console.error(message, hint=hint)
    if console.json:
        kind = type(error).__name__ if error is not None else "Interrupted"
        console.document({"error": {"type": kind, "message": message, "hint": hint, "exit_code": int(code)}})
    return int(code)


def _usage_hint(arguments: Sequence[str]) -> str:
    """The help of the command that was typed, e.g. `mixport calib list --help`."""
    groups = {str(group.name): group.typer_instance for group in app.registered_groups}
    words: list[str] = []
    level: typer.Typer | None = app
    for word in arguments:
        names = [str(command.name) for command in level.registered_commands] if level is not None else []
        if word not in names and not (level is app and word in groups):
            break
        words.append(word)
        level = groups.get(word) if level is app else None
    return " ".join(["mixport", *words, "--help"])


if __name__ == "__main__":
    main()
