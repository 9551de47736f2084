"""Read a state dict from a file of unknown origin: safetensors, or a .pth through torch's weights-only unpickler."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike has no parameter
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mixport.errors import BadInputError, UnsupportedModelError

_HINT = "give a .safetensors state dict of the same architecture: --weights FILE.safetensors"

#: Counters that training keeps and inference never reads; a checkpoint may lack them.
_OPTIONAL_SUFFIX = "num_batches_tracked"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read `path` without running any code from it.

    Raises:
        BadInputError: missing, truncated, not a flat dict of tensors, or a pickle that would run code.
    """
    if not path.is_file():
        raise BadInputError(f"weights file {path} does not exist", hint=_HINT)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInputError(f"weights file {path} is damaged or not safetensors: {error}", hint=_HINT) from error
    if path.suffix not in {".pth", ".pt", ".bin"}:
        raise BadInputError(f"weights file {path}: suffix {path.suffix!r}, allowed .safetensors .pth .pt .bin", hint=_HINT)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(
            f"weights file {path} was refused: it is damaged, or it would run code when read ({reason})", hint=_HINT
        ) from error
    state = _flat_tensors(loaded)
    if state is None:
        raise BadInputError(f"weights file {path} holds no flat state dict of tensors", hint=_HINT)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _flat_tensors(loaded: object) -> dict[str, Tensor] | None:
    """A state dict, also where it lies below `state_dict` in a checkpoint; None for anything else."""
    if not isinstance(loaded, dict):
        return None
    entries = cast("dict[object, object]", loaded)
    nested = entries.get("state_dict")
    if isinstance(nested, dict):
        entries = cast("dict[object, object]", nested)
    tensors = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return tensors if len(tensors) == len(entries) else None


def load_into(model: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy `state` into `model`; names and shapes must match, values must be finite.

    Raises:
        BadInputError: names what differs.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith(_OPTIONAL_SUFFIX)]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise BadInputError(
            f"weights {source} do not match the model: {len(missing)} missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}",
            hint="check the architecture and its options (--model-arg KEY=VALUE)",
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise BadInputError(
                f"weights {source}: {name} has shape {tuple(tensor.shape)}, the model expects {tuple(expected[name].shape)}",
                hint="check the architecture and its options (--model-arg num_classes=... for another head)",
            )
    model.load_state_dict({name: state.get(name, value) for name, value in expected.items()})
    check_finite(model, source=source)


def check_plain(model: nn.Module, *, source: str) -> None:
    """Raise UnsupportedModelError where a parameter or buffer is no dense real tensor with values.

    That is meta, lazy, sparse, complex and quantised ones.
    """
    state: Mapping[str, object] = model.state_dict()
    for name, value in state.items():
        dense = isinstance(value, Tensor) and not isinstance(value, (UninitializedParameter, UninitializedBuffer))
        if dense and value.layout is torch.strided and not (value.is_meta or value.is_complex() or value.is_quantized):
            continue
        kind = f"{value.dtype} {value.layout} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise UnsupportedModelError(
            f"{source}: {name} is {kind}, allowed dense real tensors", hint="give the float model with its weights, before any quantisation"
        )


def check_finite(model: nn.Module, *, source: str) -> None:
    """Raise BadInputError where a parameter holds NaN or infinity, or a buffer NaN, naming it. Masks are buffers of -inf."""
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
        if tensor.is_floating_point() and bool(bad.any()):
            count = int(bad.sum())
            raise BadInputError(
                f"weights {source}: {name} holds {count} values that are NaN or infinite, of {tensor.numel()}",
                hint="the checkpoint is damaged or training diverged; export it again",
            )
