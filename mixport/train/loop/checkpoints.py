"""The state of a training after an epoch on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.optim import Optimizer

from mixport.quantize.learn.loop.checkpoints import UnitCheckpoints
from mixport.records.choices.trained import EpochRecord

_TENSORS, _RECORD = "state.safetensors", "state.json"


class EpochCheckpoints(UnitCheckpoints, Protocol):
    """Where finished epochs wait for a training that goes on."""

    def forget(self, place: int | str) -> None:
        """What stands at this place is not needed any more."""
        ...


def write_state(
    folder: Path, *, module: nn.Module, optimiser: Optimizer, average: list[Tensor], curve: list[EpochRecord]
) -> None:
    """Write everything that the next epoch needs.

    Args:
        folder: existing and empty.
        module: parameters and buffers.
        optimiser: its momenta.
        average: of the parameters, empty without one.
        curve: of the whole training so far.
    """
    tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {
            f"optimiser/{number}/{key}": value for key, value in state.items() if isinstance(value, Tensor)
        }
    tensors |= {f"average/{number}": value for number, value in enumerate(average)}
    save_file({name: _plain(value) for name, value in tensors.items()}, folder / _TENSORS)
    record = [epoch.model_dump() for epoch in curve]
    (folder / _RECORD).write_text(json.dumps({"curve": record}, indent=1), encoding="utf-8")


def read_state(
    folder: Path, *, module: nn.Module, optimiser: Optimizer, average: list[Tensor]
) -> list[EpochRecord]:
    """Put back what `write_state` wrote; returns the curve."""
    tensors: dict[str, Tensor] = load_file(folder / _TENSORS)
    module.load_state_dict(_under(tensors, "module/"))
    states: dict[int, dict[str, Any]] = {}
    parameters = [one for group in optimiser.param_groups for one in group["params"]]
    for name, value in _under(tensors, "optimiser/").items():
        number, _, key = name.partition("/")
        states.setdefault(int(number), {})[key] = _laid_out(value, parameters[int(number)])
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    with torch.no_grad():
        for number, value in enumerate(average):
            value.copy_(tensors[f"average/{number}"])
    document = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return [EpochRecord.model_validate(epoch) for epoch in document["curve"]]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A momentum in the memory order of its parameter: fused optimisers walk memory, not indices."""
    if value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()
