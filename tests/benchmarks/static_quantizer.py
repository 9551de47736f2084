"""onnxruntime's own quantize_static, from torch's export of the same float model: what benchmarks stand beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mixport.quantize import FloatModel


class Images(CalibrationDataReader):
    """The images one by one, as quantize_static wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self.rows: Iterator[np.ndarray] = iter(images[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self.rows, None)
        return None if row is None else {"input": row}


def export_float(model: FloatModel, path: Path) -> None:
    """torch's ONNX export, opset 21, symbolic batch."""
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model.module,
        (torch.zeros((2, *model.input_shape[1:])),),
        path,
        dynamo=True,
        opset_version=21,
        dynamic_shapes=shapes,
        input_names=["input"],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )


def static_file(model: FloatModel, images: np.ndarray, folder: Path) -> tuple[Path, Path]:
    """The float file, and the QDQ file of quantize_static: per channel, uint8 activations, int8 weights, min-max.

    Args:
        model: float model.
        images: float32 [N, C, H, W] to calibrate on, preprocessed.
        folder: existing folder for both files.
    """
    plain, prepared, static = folder / "float.onnx", folder / "prepared.onnx", folder / "static.onnx"
    export_float(model, plain)
    quant_pre_process(plain, prepared)
    quantize_static(
        prepared,
        static,
        Images(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return plain, static
