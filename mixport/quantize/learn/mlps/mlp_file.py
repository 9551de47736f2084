"""One finished MLP on disk: its weights as safetensors, and what happened to it as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from mixport.records.choices.search import MlpRecord
from mixport.records.decision import Decision

_TENSORS, _RECORD = "mlp.safetensors", "mlp.json"


@dataclass(frozen=True, kw_only=True)
class FinishedMlp:
    """What was made of one MLP.

    Attributes:
        values: see `find.Values`; None where it keeps GELU.
        record: its errors.
        decision: what was done, or why nothing.
    """

    values: dict[str, Tensor] | None
    record: MlpRecord
    decision: Decision


def write_mlp(folder: Path, mlp: FinishedMlp) -> None:
    """Write mlp.safetensors, without tensors where the MLP keeps GELU, and mlp.json."""
    values = mlp.values or {}
    save_file({name: value.cpu().contiguous() for name, value in values.items()}, folder / _TENSORS)
    (folder / _RECORD).write_bytes(_Json.dump_json((mlp.record, mlp.decision)))


def read_mlp(folder: Path) -> FinishedMlp:
    """Read back what `write_mlp` wrote."""
    record, decision = _Json.validate_json((folder / _RECORD).read_bytes())
    return FinishedMlp(values=load_file(folder / _TENSORS) or None, record=record, decision=decision)


_Json = TypeAdapter(tuple[MlpRecord, Decision])
