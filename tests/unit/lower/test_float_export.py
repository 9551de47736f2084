"""The float file: the module's own values, a batch of one, and a message where torch cannot write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from mixport.lower.float_export import export_float
from mixport.records.errors import UnsupportedModelError
from tests.models import tiny


def test_the_file_gives_what_the_module_gives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = tiny().eval()
    export_float(module, tmp_path / "float.onnx", input_shape=(1, 3, 32, 32))
    assert capfd.readouterr().out == ""
    session = ort.InferenceSession(str(tmp_path / "float.onnx"), providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("input", [1, 3, 32, 32])]
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    # float32 sums of another order: some units of the last place of values around 1
    np.testing.assert_allclose(session.run(["output"], {"input": x})[0], wanted, atol=1e-5)


class Forks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


def test_what_torch_cannot_write_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match="torch's ONNX exporter cannot write the float model"
    ) as caught:
        export_float(Forks().eval(), tmp_path / "float.onnx", input_shape=(1, 3, 4, 4))
    assert caught.value.hint == "--against FILE.onnx takes a float file of your own"
