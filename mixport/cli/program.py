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
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import FrameType, MappingProxyType
from typing import Annotated

import typer

from mixport import __version__
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


@dataclass(frozen=True, kw_only=True)
class _Command:
    """A command or a group: imported when it is typed, since `mixport --help` must not wait for all of them.

    Attributes:
        module: in mixport.cli.commands; its function or its `app` is called as the command is.
        help: first line of its own help.
        group: has commands of its own.
        panels: shows its options in groups.
    """

    module: str
    help: str
    group: bool = False
    panels: bool = False


COMMANDS: Mapping[str, _Command] = MappingProxyType(
    {
        "build": _Command(
            module="build",
            help="Quantise a model, lower it to ONNX, validate every code, and write a release bundle.",
            panels=True,
        ),
        "train": _Command(
            module="train",
            help="Train a model for low bits, and write its weights, widths and intervals for the exporter.",
            panels=True,
        ),
        "sweep": _Command(
            module="sweep",
            help="Export one weight at many widths: a validated bundle each, a table and a plot.",
            panels=True,
        ),
        "validate": _Command(
            module="validate",
            help=(
                "Check hashes and proofs, run the model on each runtime, and compare every code with the "
                "bundle's golden vectors."
            ),
        ),
        "inspect": _Command(
            module="inspect",
            help="Show every node: integer or float, bits, accumulator bound, portability class, and why.",
        ),
        "bench": _Command(
            module="bench",
            help="Time a bundle's model on onnxruntime: one thread, batch 1, medians of interleaved rounds.",
        ),
        "conformance": _Command(
            module="conformance",
            help="Run small graphs of every operator form on a runtime, and say which forms are exact there.",
        ),
        "doctor": _Command(
            module="doctor",
            help=(
                "Say what is installed, what is missing, and what to type. Exit code 1 where a build "
                "cannot work."
            ),
        ),
        "calib": _Command(
            module="calib", help="Calibration images: make, list, look at, verify, prune.", group=True
        ),
        "targets": _Command(
            module="targets", help="Targets: list them, show one, check an ONNX file against one.", group=True
        ),
        "runtimes": _Command(
            module="runtimes", help="Runtimes: what can validate here, and how to get the others.", group=True
        ),
    }
)


def make_app(words: Sequence[str]) -> typer.Typer:
    """The program for one command line: the command that it types is real, the others show their help."""
    made = typer.Typer(
        name="mixport",
        help="A float vision model in, a validated low-bit ONNX bundle out.",
        epilog=(
            "Exit codes: 0 done, 1 you can fix it, 2 usage, 3 validation or a gate failed, 70 our bug, "
            "130 interrupted."
        ),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    made.callback()(top)
    typed = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        if name == typed:
            module = import_module(f"mixport.cli.commands.{command.module}")
            if command.group:
                made.add_typer(module.app, name=name)
            else:
                cls = PanelCommand if command.panels else None
                made.command(name, cls=cls)(getattr(module, command.module))
        elif command.group:
            made.add_typer(typer.Typer(help=command.help, rich_markup_mode=None), name=name)
        else:
            made.command(name, help=command.help)(_not_typed)
    return made


def _not_typed() -> None:
    """Stands for a command that this command line does not type."""


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().line(f"mixport {__version__}")
        raise typer.Exit


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
        code = make_app(arguments)(
            args=[*arguments], prog_name="mixport", standalone_mode=False, obj=interrupted
        )
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
    app = make_app(arguments)
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
