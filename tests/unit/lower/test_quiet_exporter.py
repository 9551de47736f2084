"""What is held back while the exporter works, and that everything is as before once it has finished."""

from __future__ import annotations

import logging
import warnings

import pytest

from mixport.lower.quiet_exporter import quiet_exporter

NOISY = ["torch.onnx", "onnxscript", "onnx_ir", "torch.export"]


@pytest.mark.parametrize("name", NOISY)
def test_log_lines_below_critical_are_held_back(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(f"{name}.a_test")
    # Torch's own loggers do not reach the root, where pytest listens.
    logger.addHandler(caplog.handler)
    logger.propagate = False
    try:
        with quiet_exporter():
            logger.error("inside")
            logger.critical("very bad")
        logger.error("behind")
    finally:
        logger.removeHandler(caplog.handler)
        logger.propagate = True
    assert [record.message for record in caplog.records] == ["very bad", "behind"]


def test_other_loggers_speak(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_exporter():
        logging.getLogger("mixport.a_test").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG])
def test_levels_are_put_back(name: str, level: int) -> None:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        with quiet_exporter():
            assert logger.level == logging.CRITICAL
        assert logger.level == level
    finally:
        logger.setLevel(before)


def test_warnings_are_held_back_and_the_filters_put_back() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with quiet_exporter():
            warnings.warn("inside", UserWarning, stacklevel=1)
            warnings.warn("inside, too", DeprecationWarning, stacklevel=1)
        assert list(warnings.filters) == before
        warnings.warn("behind", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["behind"]


def test_a_warning_that_should_raise_does_not_inside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_exporter():
            warnings.warn("inside", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="behind"):
            warnings.warn("behind", UserWarning, stacklevel=1)


def test_errors_are_raised_and_levels_put_back_all_the_same() -> None:
    before = [logging.getLogger(name).level for name in NOISY]
    with pytest.raises(ValueError, match="no such operator"), quiet_exporter():
        raise ValueError("no such operator")
    assert [logging.getLogger(name).level for name in NOISY] == before


def test_one_inside_the_other_leaves_the_outer_one_in_force() -> None:
    logger = logging.getLogger("onnxscript")
    before = logger.level
    with quiet_exporter():
        with quiet_exporter():
            pass
        assert logger.level == logging.CRITICAL
    assert logger.level == before
