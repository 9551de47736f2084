from __future__ import annotations

import io
import json

import pytest

from mixport.cli import console as console_module
from mixport.cli.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Output:
    def __init__(self, *, json: bool = False, quiet: bool = False, terminal: bool = False) -> None:
        self.stdout = io.StringIO()
        self.stderr = Terminal() if terminal else io.StringIO()
        self.console = Console(json=json, quiet=quiet, stdout=self.stdout, stderr=self.stderr)

    @property
    def text(self) -> tuple[str, str]:
        return self.stdout.getvalue(), self.stderr.getvalue()


def test_data_goes_to_stdout_and_the_rest_to_stderr() -> None:
    output = Output()
    output.console.line("data")
    output.console.note("note")
    output.console.error("message", hint="mixport doctor")
    assert output.text == ("data\n", "note\nerror: message\nhint: mixport doctor\n")


def test_json_mode_prints_the_document_and_nothing_else_on_stdout() -> None:
    output = Output(json=True)
    output.console.line("for people")
    output.console.raw("for people")
    output.console.table(["a"], [[1]])
    output.console.document({"a": 1})
    output.console.note("note")
    assert json.loads(output.text[0]) == {"a": 1}
    assert output.text[1] == "note\n"


def test_quiet_keeps_data_errors_and_hints() -> None:
    output = Output(quiet=True)
    output.console.note("note")
    output.console.line("data")
    output.console.error("message", hint="do this")
    with output.console.track("calibrate", total=1) as advance:
        advance(1)
    assert output.text == ("data\n", "error: message\nhint: do this\n")


def test_the_document_is_valid_json_whatever_the_floats_and_keys() -> None:
    output = Output(json=True)
    output.console.document({"nan": float("nan"), "inf": [float("inf"), 1.5], 3: ("a", None, True)})
    assert json.loads(output.text[0]) == {"nan": None, "inf": [None, 1.5], "3": ["a", None, True]}


def test_text_with_brackets_is_printed_as_it_is() -> None:
    output = Output()
    output.console.line("[build] [red]x[/red] :smile:")
    assert output.text[0] == "[build] [red]x[/red] :smile:\n"


def test_long_errors_are_not_wrapped_where_a_program_reads_them() -> None:
    output = Output()
    output.console.error("word " * 100)
    assert output.text[1].count("\n") == 1


def test_a_table_sets_numbers_to_the_right() -> None:
    output = Output()
    output.console.table(["name", "count"], [["a", 7], ["b", 1234]])
    assert [line.rstrip() for line in output.text[0].splitlines()] == [
        "name  count",
        "a         7",
        "b      1234",
    ]


def test_an_empty_table_is_its_head() -> None:
    output = Output()
    output.console.table(["name"], [])
    assert output.text[0].strip() == "name"


def test_no_bar_and_no_colour_outside_a_terminal() -> None:
    output = Output()
    with output.console.track("calibrate", total=2) as advance:
        advance(2)
    assert output.text == ("", "")


def test_a_long_stage_says_where_it_is_in_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 5.0, 11.0, 12.0])
    monkeypatch.setattr(console_module.time, "monotonic", lambda: next(moments))
    output = Output()
    with output.console.track("validate", total=30, unit="images") as advance:
        for _ in range(3):
            advance(10)
    assert output.text[1] == "validate: 20/30 images\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = Output(terminal=True)
    with output.console.track("calibrate", total=2) as advance:
        advance(2)
    assert "calibrate" in output.text[1]
    assert output.text[0] == ""


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    output = Output(terminal=True)
    output.console.error("message", hint="hint")
    assert "\x1b[3" not in output.text[1]
    monkeypatch.delenv("NO_COLOR")
    coloured = Output(terminal=True)
    coloured.console.error("message")
    assert "\x1b[31m" in coloured.text[1]
