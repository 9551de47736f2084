"""Hold back what torch's exporter and onnxscript say of their own work; errors still raise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


@contextmanager
def quiet_exporter() -> Generator[None]:
    """No warnings and no log lines below critical inside."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
