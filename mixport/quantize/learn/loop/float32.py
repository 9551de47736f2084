"""What torch may not do on CUDA while something is learned: round to TF32, or sum in an order that changes
from run to run.
"""

# torch leaves some signatures of its switches without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""cuBLAS promises the same sums only with a fixed workspace; torch reads this when it first multiplies
matrices on the device.
"""


@contextmanager
def in_float32(device: torch.device) -> Generator[None]:
    """Inside, on CUDA: no TF32 in convolutions and matrix products, and deterministic algorithms wherever
    torch has them.

    torch warns of each operator that has none, such as the derivative of a bilinear resize; there two runs
    may differ in the last places. The process-wide switches are put back at the end. Other devices need
    nothing of this.
    """
    if device.type != "cuda":
        yield
        return
    convolutions = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with convolutions, _float32_products(), _deterministic():
        yield


@contextmanager
def _float32_products() -> Generator[None]:
    """Matrix products without TF32, by the older of torch's two interfaces: it keeps both in step, the newer
    one does not.
    """
    switches = torch.backends.cuda.matmul
    try:
        allowed = bool(switches.allow_tf32)
    except RuntimeError:  # the newer interface was used before: the older one no longer answers
        before = str(switches.fp32_precision)
        switches.fp32_precision = "ieee"
        try:
            yield
        finally:
            switches.fp32_precision = before
        return
    if allowed:
        switches.allow_tf32 = False
    try:
        yield
    finally:
        if allowed:
            switches.allow_tf32 = True


@contextmanager
def _deterministic() -> Generator[None]:
    """Deterministic algorithms, a warning where there are none; nothing changes where they are asked for
    already.
    """
    if torch.are_deterministic_algorithms_enabled():
        yield
        return
    memory: Any = torch.utils.deterministic
    filled, warned = memory.fill_uninitialized_memory, torch.is_deterministic_algorithms_warn_only_enabled()
    name, value = _CUBLAS
    known = os.environ.get(name)
    os.environ.setdefault(name, value)
    memory.fill_uninitialized_memory = False  # writes NaN into every new tensor, and makes no sum the same
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False, warn_only=warned)
        memory.fill_uninitialized_memory = filled
        if known is None:
            os.environ.pop(name, None)
