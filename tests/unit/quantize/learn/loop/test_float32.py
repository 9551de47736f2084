"""torch's process-wide switches while something is learned on CUDA; none of them needs the device to be
there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from mixport.quantize.learn.loop.float32 import in_float32

_MATMUL = torch.backends.cuda.matmul


def switches() -> tuple[Any, ...]:
    return (
        torch._C._get_cublas_allow_tf32(),
        _MATMUL.fp32_precision,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("tf32", [False, True])
def test_on_cuda_everything_is_float32_and_deterministic_and_comes_back(tf32: bool) -> None:
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    before = switches()
    try:
        with pytest.raises(KeyError), in_float32(torch.device("cuda")):
            assert not _MATMUL.allow_tf32 and not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic and torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled(), (
                "an operator without such an algorithm does not end the build"
            )
            assert not torch.utils.deterministic.fill_uninitialized_memory
            raise KeyError
        assert switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_other_devices_change_nothing() -> None:
    before = switches()
    with in_float32(torch.device("cpu")):
        assert switches() == before


def test_the_newer_switch_of_torch_comes_back_too() -> None:
    # In a process of its own: once the newer switch was used, torch refuses to answer the older one.
    code = """
import torch
from mixport.quantize.learn.loop.float32 import in_float32
m = torch.backends.cuda.matmul
m.fp32_precision = "tf32"
with in_float32(torch.device("cuda")):
    assert m.fp32_precision == "ieee", m.fp32_precision
assert m.fp32_precision == "tf32"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_who_asks_for_errors_keeps_them() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with in_float32(torch.device("cuda")):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
