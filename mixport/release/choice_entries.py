"""manifest.json: how widths were chosen, and how codes were learned."""

from __future__ import annotations

from typing import Literal

from mixport.release.manifest_part import Part


class WidthOptionEntry(Part):
    """One width a layer could have had: loss alone (KL divergence in nats), bytes of its weights in the
    file.
    """

    bits: int
    loss: float
    file_bytes: int


class LayerChoiceEntry(Part):
    """Bits chosen for one layer, and from what."""

    name: str
    bits: int
    options: tuple[WidthOptionEntry, ...]


class WidthsEntry(Part):
    """How weight bits were chosen under a size budget; the fields are those of
    `mixport.records.choices.search.WidthSearch`.
    """

    budget_bytes: int
    smallest_bytes: int
    bound_bytes: int
    images: int
    exponent: float | None
    predicted: float
    loss: float
    uniform: dict[int, float]
    fits: tuple[int, ...]
    layers: tuple[LayerChoiceEntry, ...]


class UnitEntry(Part):
    """One reconstructed unit: layers and activation sites that were learned; error of its output relative to
    its own square.

    The errors are None where they are no finite number. Without layers and sites the unit stayed as it was:
    rounded to nearest, or as the recipe's stage before left it. `batch` is the number of images a step,
    `dropped` the share of the values in the unit's input that were float ones while it was learned; None
    where an older mixport did not note them.
    """

    name: str
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    error_before: float | None
    error_after: float | None
    batch: int | None = None
    dropped: float | None = None


class MlpEntry(Part):
    """One MLP whose GELU was to become ReLU: its layers, none where it keeps GELU; error of its output in
    float relative to its own square.

    `error_before` is with ReLU simply put in, `error_after` with what was learned; None where it is no finite
    number.
    """

    name: str
    layers: tuple[str, ...]
    error_before: float | None
    error_after: float | None


class ReconstructionEntry(Part):
    """How the integers were learned: recipe, steps a unit, calibration images, seed, device (cpu or cuda),
    CPU threads, units in order.

    `mlps` were learned in float before, in `mlp_iters` steps each.
    """

    preset: str
    iters: int
    images: int
    seed: int
    device: str
    threads: int
    units: tuple[UnitEntry, ...]
    mlps: tuple[MlpEntry, ...] = ()
    mlp_iters: int = 0


class TrainingDataEntry(Part):
    """What a training saw: labelled images, or how images without labels were made; SHA-256 of them."""

    method: str
    source: str
    sha256: str
    images: int
    held_out: int
    labels: bool


class TrainingEntry(Part):
    """The training that weights, widths or integers are from.

    `taken` says which of them; `record_sha256` is the hash of its training.json, `command` repeats it.
    """

    method: str
    taken: Literal["integers", "widths", "weights"]
    data: TrainingDataEntry
    teacher: str | None
    budget: str | None
    epochs: int
    record_sha256: str
    command: str
