from __future__ import annotations

import logging

import pytest

from mixport.calibration.generator.missing_weights import watch_missing_weights

DIFFUSERS, TRANSFORMERS = (
    logging.getLogger("diffusers.models.modeling_utils"),
    logging.getLogger("transformers.modeling_utils"),
)


def test_a_report_in_colours_is_read() -> None:
    with watch_missing_weights() as missing:
        TRANSFORMERS.warning(
            "\x1b[1mX LOAD REPORT\x1b[0m\nKey | Status |\n----+--+\na.b | \x1b[31mMISSING\x1b[0m | "
            "\nc | UNEXPECTED | \n"
        )
    assert missing == ["a.b"]


def test_long_lists_are_cut() -> None:
    with watch_missing_weights() as missing:
        text = (
            "Some weights of Unet were not initialized from the model checkpoint at x and are newly "
            "initialized: %s\nYou should"
        )
        DIFFUSERS.warning(text, ["d", "a", "c", "b"])
    assert missing == ["Unet: a, b, c and 1 more"]


def test_other_warnings_do_not_count_and_the_loggers_are_put_back(caplog: pytest.LogCaptureFixture) -> None:
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in (DIFFUSERS, TRANSFORMERS)]
    with watch_missing_weights() as missing:
        DIFFUSERS.warning("something else")
    assert missing == []
    assert [
        (logger.level, logger.propagate, logger.handlers[:]) for logger in (DIFFUSERS, TRANSFORMERS)
    ] == before
