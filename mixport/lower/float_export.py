"""The float model as torch itself exports it: the file that latency is measured against."""

# torch.onnx.export is typed only in part.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mixport.lower.quiet_exporter import quiet_exporter
from mixport.records.errors import UnsupportedModelError

_OPSET = 21


def export_float(module: nn.Module, path: Path, *, input_shape: tuple[int, int, int, int]) -> None:
    """Write `module` as float ONNX, opset 21, with torch's own exporter and its optimiser.

    The batch is fixed at the first side of `input_shape`. With a symbolic one the export takes two to three
    times as long, and the file is never faster (0 to 2 % slower at batch 1: vit_tiny, mobilevitv2_050,
    convnext_atto, mobilenetv3_small on onnxruntime 1.32).

    Args:
        module: in eval mode, takes one float32 tensor.
        path: of the new file; input `input`, output `output`.
        input_shape: [N, 3, H, W].

    Raises:
        UnsupportedModelError: the exporter cannot write the model.
    """
    try:
        with quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                module,
                (torch.zeros(input_shape),),
                path,
                dynamo=True,
                opset_version=_OPSET,
                input_names=["input"],
                output_names=["output"],
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise  # a full disk is the store's to explain
    except Exception as error:  # the exporter wraps its causes in private types
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModelError(
            (
                "torch's ONNX exporter cannot write the float model: "
                f"{(lines or [type(error).__name__])[0][:300]}"
            ),
            hint="--against FILE.onnx takes a float file of your own",
        ) from error
