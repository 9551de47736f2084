"""One way to check the options of every command."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from mixport.pipeline.options.checked import check_names, read_options
from mixport.records.errors import BadOptionError


class Toy(BaseModel):
    some_steps: Annotated[int, Field(ge=1)] = 3
    word: str = "a"

    @field_validator("word")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > 3:
            raise ValueError("It is too long")
        return value

    @model_validator(mode="after")
    def _together(self) -> Toy:
        if self.word == "no":
            raise ValueError("Never together")
        return self


def test_values_are_read_and_defaults_filled() -> None:
    assert read_options(Toy, {"some_steps": "7"}, command="toy") == Toy(some_steps=7, word="a")


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        (
            {"some_steps": 0},
            "--some-steps: input should be greater than or equal to 1, got 0",
            "mixport toy --help",
        ),
        (
            {"some_steps": "x"},
            "--some-steps: input should be a valid integer, .*got 'x'",
            "mixport toy --help",
        ),
        ({"word": "long"}, "--word: it is too long, got 'long'", "mixport toy --help"),
        ({"word": "no"}, "options: never together", "mixport toy --help"),
        (
            {"some_step": 1},
            "unknown option 'some_step', allowed: some_steps, word",
            "did you mean 'some_steps'?",
        ),
        ({"zzzz": 1}, "unknown option 'zzzz', allowed: some_steps, word", "mixport toy --help"),
    ],
)
def test_the_first_fault_is_named_with_what_it_got_and_what_is_allowed(
    values: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(BadOptionError, match=message) as caught:
        read_options(Toy, values, command="toy")
    assert caught.value.hint == hint


def test_names_are_said_with_where_they_stand() -> None:
    check_names(Toy, ["word"], where="x.toml: ", command="toy")
    with pytest.raises(BadOptionError, match=r"^x\.toml: unknown option 'wrod'"):
        check_names(Toy, ["wrod"], where="x.toml: ", command="toy")
