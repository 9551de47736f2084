"""The one place that writes: data on stdout, progress, notes, hints and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mixport.records.progress import Advance, ignore

_LINE_SECONDS = 10.0


class Console:
    """Writes for people, or one JSON document for programs.

    Colour and bars appear only on a terminal, and NO_COLOR is respected. Elsewhere progress is a plain line
    now and then.

    Attributes:
        json: stdout carries exactly one JSON document, and nothing else.
        quiet: stderr carries errors and their hints only.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json = json
        self.quiet = quiet
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        no_color = bool(os.environ.get("NO_COLOR"))
        # Wide enough that a row stays a line, for grep.
        width = None if self._stdout.isatty() else 400
        self._out = RichConsole(
            file=self._stdout, highlight=False, markup=False, emoji=False, no_color=no_color, width=width
        )
        self._err = RichConsole(
            file=self._stderr, highlight=False, markup=False, emoji=False, no_color=no_color, soft_wrap=True
        )

    @property
    def width(self) -> int:
        """Columns that a row of stdout may have: the terminal's, and many elsewhere."""
        return self._out.width

    def document(self, value: object) -> None:
        """Print the one JSON document of this run. Non-finite floats become null, as JSON has none."""
        self._stdout.write(json.dumps(_jsonable(value), indent=2, ensure_ascii=False) + "\n")
        self._stdout.flush()

    def line(self, text: str) -> None:
        """Print one line of data, for people; nothing in JSON mode."""
        if not self.json:
            self._out.print(text, soft_wrap=True)

    def raw(self, text: str) -> None:
        """Print text as it is, without wrapping or colour; nothing in JSON mode."""
        if not self.json:
            self._stdout.write(text)
            self._stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table, without a head where no column has a name; nothing in JSON mode. Columns of numbers
        are set to the right.
        """
        if self.json:
            return
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*[_cell(value) for value in row])
        self._out.print(table)

    def note(self, text: str) -> None:
        """Say on stderr what is going on; nothing when quiet."""
        if not self.quiet:
            self._err.print(text)

    def hint(self, text: str) -> None:
        """Say on stderr what to type next."""
        self._err.print(f"hint: {text}", style="cyan")

    def error(self, message: str, *, hint: str | None = None) -> None:
        """Say on stderr what went wrong, and what to type next."""
        self._err.print(f"error: {message}", style="red")
        if hint is not None:
            self.hint(hint)

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Generator[Advance]:
        """A bar on a terminal, plain lines elsewhere, nothing when quiet. Implements
        `mixport.records.progress.Progress`.
        """
        if self.quiet:
            yield ignore
        elif self._err.is_terminal:
            with _bar(self._err, unit) as bar:
                task = bar.add_task(description, total=total)

                def advance(count: int, detail: str = "") -> None:
                    bar.update(
                        task, advance=count, description=f"{description}: {detail}" if detail else None
                    )

                yield advance
        else:
            yield _PlainLines(self.note, description=description, total=total, unit=unit).advance


class _PlainLines:
    """One line every ten seconds at most, so that a log file stays short; short stages print none."""

    def __init__(self, write: Callable[[str], None], *, description: str, total: int, unit: str) -> None:
        self._write = write
        self._description = description
        self._total = total
        self._unit = unit
        self._done = 0
        self._detail = ""
        self._last = time.monotonic()

    def advance(self, count: int, detail: str = "") -> None:
        self._done += count
        self._detail = detail or self._detail
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            detail = f" ({self._detail})" if self._detail else ""
            self._write(f"{self._description}: {self._done}/{self._total} {self._unit}{detail}")


def _bar(console: RichConsole, unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _jsonable(value: object) -> object:
    """JSON has no NaN or infinity, and its keys are strings."""
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in cast("Sequence[object]", value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
