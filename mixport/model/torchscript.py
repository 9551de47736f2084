"""TorchScript modules and archives: recognised, and refused with what to give in their place. torch.export
does not take them.
"""

# torch leaves parts of its own signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mixport.records.errors import UnsupportedModelError
from mixport.storage.npz import ARCHIVE_DAMAGE


def check_eager(module: nn.Module, *, source: str) -> None:
    """Raise UnsupportedModelError where the module, or one inside it, is a TorchScript module."""
    parts: Iterator[tuple[str, nn.Module]] = module.named_modules()
    for name, part in parts:
        if isinstance(part, torch.jit.ScriptModule):
            what = f"its module {name}" if name else "it"
            raise UnsupportedModelError(
                (
                    f"{source}: {what} is a TorchScript module (torch.jit.script, trace or load), "
                    "allowed plain torch.nn modules"
                ),
                hint="name a factory that builds the module that was scripted; its weights: --weights "
                "FILE.safetensors, "
                "made by safetensors.torch.save_file(scripted.state_dict(), 'FILE.safetensors')",
            )


def is_torchscript(path: Path) -> bool:
    """True for an archive of torch.jit.save. Nothing is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = [name.partition("/")[2] for name in archive.namelist()]
    except ARCHIVE_DAMAGE:
        return False
    return "constants.pkl" in inner and any(name.startswith("code/") for name in inner)


def weights_hint(path: Path) -> str:
    """What to type for the weights of an archive, as safetensors; for files of one's own, since
    torch.jit.load runs them.
    """
    read = f"torch.jit.load('{path}').state_dict()"
    return (
        f'python -c "import torch; from safetensors.torch import save_file; save_file({read}, '
        "'weights.safetensors')\""
    )
