"""Fixtures of the validation tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from mixport.records.targets import Target, load_target


@pytest.fixture
def target() -> Target:
    return load_target("ort-cpu")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a model into a temporary file."""

    def write(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
