"""onnxruntime's own quantize_static: the file that a user would have without mixport, for comparison."""

# onnxruntime.quantization has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime.quantization as quantization
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process

from mixport.records.errors import UnsupportedModelError

_quantization: Any = quantization


class _Images:
    """The images one by one, as quantize_static wants them (a CalibrationDataReader by its methods)."""

    def __init__(self, images: NDArray[np.float32], name: str) -> None:
        self._rows: Iterator[NDArray[np.float32]] = iter(images[:, None])
        self._name = name

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        row = next(self._rows, None)
        return None if row is None else {self._name: row}


def quantize_static_file(source: Path, target: Path, *, images: NDArray[np.float32]) -> None:
    """Write the QDQ file of quantize_static: per channel, uint8 activations, int8 weights, min-max, after its
    own preprocessing.

    Latency does not depend on the images; ranges do.

    Args:
        source: float ONNX file with the input `input`.
        target: of the new file.
        images: float32 [N, C, H, W] to calibrate on, preprocessed; they are shown one by one.

    Raises:
        UnsupportedModelError: quantize_static or its preprocessing fails on the file.
    """
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="mixport-static-") as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared)
            _quantization.quantize_static(
                prepared,
                target,
                _Images(images, "input"),
                quant_format=_quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=_quantization.QuantType.QUInt8,
                weight_type=_quantization.QuantType.QInt8,
            )
    except OSError:
        raise  # a full disk is the store's to explain
    except Exception as error:  # it raises many types, bare Exception among them
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModelError(
            (
                "onnxruntime's quantize_static fails on the float model: "
                f"{(lines or [type(error).__name__])[0][:300]}"
            ),
            hint="--against FILE.onnx takes a file of your own",
        ) from error


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """It prints and logs what a caller cannot act on, on stdout too, which carries data."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
