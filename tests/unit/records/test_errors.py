from __future__ import annotations

import inspect

import pytest

from mixport.records import errors
from mixport.records.errors import ExitCode, MixportError


def error_classes() -> list[type[MixportError]]:
    return [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, MixportError)]


def test_exit_codes_are_the_ones_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USER": 1,
        "USAGE": 2,
        "FAILED": 3,
        "BUG": 70,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("BadInputError", ExitCode.USER),
        ("BadOptionError", ExitCode.USAGE),
        ("UnsupportedModelError", ExitCode.USER),
        ("TargetError", ExitCode.USER),
        ("StoreError", ExitCode.USER),
        ("RuntimeUnavailableError", ExitCode.USER),
        ("SizeBudgetError", ExitCode.USER),
        ("TrainingError", ExitCode.USER),
        ("ValidationFailedError", ExitCode.FAILED),
        ("InvariantError", ExitCode.BUG),
    ],
)
def test_every_error_has_its_exit_code(name: str, code: ExitCode) -> None:
    assert getattr(errors, name).exit_code is code


def test_no_error_is_missing_from_the_table_above() -> None:
    assert {item.__name__ for item in error_classes()} == {
        "MixportError",
        "BadInputError",
        "RuntimeUnavailableError",
        "SizeBudgetError",
        "TrainingError",
        "BadOptionError",
        "UnsupportedModelError",
        "TargetError",
        "StoreError",
        "ValidationFailedError",
        "InvariantError",
    }


@pytest.mark.parametrize("kind", error_classes())
def test_an_error_carries_message_and_hint(kind: type[MixportError]) -> None:
    error = kind("what, where, got, allowed", hint="mixport doctor")
    assert str(error) == "what, where, got, allowed"
    assert error.hint == "mixport doctor"
    assert kind("no hint").hint is None
