"""A training run's state on disk: written beside and renamed, read as plain tensors only."""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, in dicts and lists) in place of the last one."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    beside.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last state, or None where the run starts afresh."""
    if not path.is_file():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def save_parts(path: Path, parts: Mapping[str, Any], *, done: int) -> None:
    """Write the states of what is trained (modules, optimiser, schedule), and how many steps or epochs they
    have behind them.
    """
    save_checkpoint(path, {**{name: part.state_dict() for name, part in parts.items()}, "done": done})


def resume(path: Path, parts: Mapping[str, Any]) -> int:
    """Give the parts the states that `save_parts` wrote, where there are any, and say how many steps or
    epochs are done.
    """
    state = load_checkpoint(path)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["done"]
