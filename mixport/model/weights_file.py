"""Read a state dict from a file of unknown origin: safetensors, or a .pth through torch's weights-only
unpickler.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike has no parameter
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mixport.model.torchscript import is_torchscript, weights_hint
from mixport.records.decision import Decision
from mixport.records.errors import BadInputError, UnsupportedModelError

_HINT = "give a .safetensors state dict of the same architecture: --weights FILE.safetensors"

_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where a training checkpoint keeps weights, in the order in which timm's load_checkpoint looks: the average
over training first.
"""


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors of a weights file by name, and which of the file's state dicts they are where it holds
    several.
    """

    tensors: dict[str, Tensor]
    notes: tuple[Decision, ...] = ()


def read_state_dict(path: Path) -> StateDict:
    """Read `path` without running any code from it.

    Raises:
        BadInputError: missing, truncated, not a flat dict of tensors, or a pickle that would run code.
    """
    if not path.is_file():
        raise BadInputError(f"weights file {path} does not exist", hint=_HINT)
    if path.suffix == ".safetensors":
        try:
            return StateDict(tensors=load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInputError(
                f"weights file {path} is damaged or not safetensors: {error}", hint=_HINT
            ) from error
    if path.suffix not in {".pth", ".pt", ".bin"}:
        raise BadInputError(
            f"weights file {path}: suffix {path.suffix!r}, allowed .safetensors .pth .pt .bin", hint=_HINT
        )
    if is_torchscript(path):
        raise BadInputError(
            f"weights file {path} is an archive of torch.jit.save, allowed a state dict",
            hint=weights_hint(path),
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(
            f"weights file {path} was refused: it is damaged, or it would run code when read ({reason})",
            hint=_HINT,
        ) from error
    found = _state_dicts(loaded)
    if not found:
        raise BadInputError(f"weights file {path} holds no flat state dict of tensors", hint=_HINT)
    taken, *others = found
    return StateDict(tensors=found[taken], notes=_chosen(path, taken, others) if others else ())


def _state_dicts(loaded: object) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a checkpoint by entry, the one to take first; under an empty name where it is one
    itself.
    """
    if not isinstance(loaded, dict):
        return {}
    entries = cast("dict[object, object]", loaded)
    nested = {name: tensors for name in _ENTRIES if (tensors := _flat_tensors(entries.get(name))) is not None}
    whole = _flat_tensors(entries)
    return nested or ({"": whole} if whole is not None else {})


def _flat_tensors(entries: object) -> dict[str, Tensor] | None:
    """A dict whose every value is a tensor; None for anything else."""
    if not isinstance(entries, dict) or not entries:
        return None
    items = cast("dict[object, object]", entries).items()
    tensors = {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    return tensors if len(tensors) == len(items) else None


def _chosen(path: Path, taken: str, others: list[str]) -> tuple[Decision, ...]:
    why = (
        f"{path.name} also holds {', '.join(others)}, and timm's load_checkpoint takes the first of "
        f"{', '.join(_ENTRIES)} too"
    )
    return (Decision(where="weights", what=f"{taken} taken", why=why),)


def check_plain(model: nn.Module, *, source: str) -> None:
    """Raise UnsupportedModelError where a parameter or buffer is no dense real tensor with values.

    That is meta, lazy, sparse, complex and quantised ones.
    """
    state: Mapping[str, object] = model.state_dict()
    for name, value in state.items():
        dense = isinstance(value, Tensor) and not isinstance(
            value, (UninitializedParameter, UninitializedBuffer)
        )
        if (
            dense
            and value.layout is torch.strided
            and not (value.is_meta or value.is_complex() or value.is_quantized)
        ):
            continue
        kind = (
            f"{value.dtype} {value.layout} on {value.device}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise UnsupportedModelError(
            f"{source}: {name} is {kind}, allowed dense real tensors",
            hint="give the float model with its weights, before any quantisation",
        )


def check_finite(model: nn.Module, *, source: str) -> None:
    """Raise BadInputError where a parameter holds NaN or infinity, or a buffer NaN, naming it. Masks are
    buffers of -inf.
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
        if tensor.is_floating_point() and bool(bad.any()):
            count = int(bad.sum())
            raise BadInputError(
                (
                    f"weights {source}: {name} holds {count} values that are NaN or infinite, of "
                    f"{tensor.numel()}"
                ),
                hint="the checkpoint is damaged or training diverged; export it again",
            )
