"""One finished unit on disk: its integers and steps as safetensors, and what happened to it as JSON."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import fx

from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.sites.widths import LayerWidths
from mixport.records.choices.search import UnitRecord
from mixport.records.decision import Decision

_TENSORS, _RECORD = "unit.safetensors", "unit.json"


class UnitCheckpoints(Protocol):
    """Where finished units wait for a run that goes on."""

    def find(self, place: int | str) -> Path | None:
        """Folder of what stands at this place (the number of a unit, the name of anything else), None where
        it is not finished.
        """
        ...

    def keep(self, place: int | str) -> AbstractContextManager[Path]:
        """A folder to write it into; it counts once the block ends without an error."""
        ...


class NoCheckpoints:
    """Keeps nothing: what is written is thrown away."""

    def find(self, place: int | str) -> Path | None:
        """Nothing is ever finished."""
        return None

    @contextmanager
    def keep(self, place: int | str) -> Generator[Path]:
        """A folder that goes when the block ends."""
        with TemporaryDirectory() as folder:
            yield Path(folder)

    def forget(self, place: int | str) -> None:
        """There is nothing."""


@dataclass(frozen=True, kw_only=True)
class FinishedUnit:
    """What reconstruction made of one unit.

    Attributes:
        integers: of the layers whose rounding was learned.
        steps: learned activation step sizes by site, real units.
        record: error before and after.
        decisions: what was declined or recovered.
    """

    integers: dict[fx.Node, LayerIntegers]
    steps: dict[str, float]
    record: UnitRecord
    decisions: tuple[Decision, ...]


def write_unit(folder: Path, unit: FinishedUnit, widths: LayerWidths) -> None:
    """Write unit.safetensors and unit.json; tensors are codes/LAYER, scales/LAYER, bias/LAYER and step/SITE,
    whatever names look like.
    """
    tensors: dict[str, np.ndarray] = {}
    for layer, integers in unit.integers.items():
        name = widths[layer].name
        tensors[f"codes/{name}"], tensors[f"scales/{name}"] = integers.codes, integers.scales
        if integers.bias is not None:
            tensors[f"bias/{name}"] = integers.bias
    for site, step in unit.steps.items():
        tensors[f"step/{site}"] = np.array([step], np.float32)
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / _TENSORS)
    (folder / _RECORD).write_bytes(_Json.dump_json((unit.record, unit.decisions)))


def read_unit(folder: Path, layers: dict[str, fx.Node]) -> FinishedUnit:
    """Read back what `write_unit` wrote; `layers` by name."""
    tensors = load_file(folder / _TENSORS)
    record, decisions = _Json.validate_json((folder / _RECORD).read_bytes())
    integers = {
        layer: LayerIntegers(
            scales=tensors[f"scales/{name}"], codes=tensors[f"codes/{name}"], bias=tensors.get(f"bias/{name}")
        )
        for name, layer in layers.items()
        if f"codes/{name}" in tensors
    }
    steps = {
        name.removeprefix("step/"): float(values[0])
        for name, values in tensors.items()
        if name.startswith("step/")
    }
    return FinishedUnit(integers=integers, steps=steps, record=record, decisions=decisions)


_Json = TypeAdapter(tuple[UnitRecord, tuple[Decision, ...]])
