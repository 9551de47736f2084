"""What was searched for before integers were fixed: how rounding was learned, and how widths were chosen
under a size budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TensorKind = Literal["weight", "activation"]


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What reconstruction did to one unit of the model.

    Attributes:
        name: module path that its layers share; behind it the stage in brackets, where the recipe has
            several.
        layers: whose rounding was learned.
        sites: whose step size was learned.
        error_before: squared error of the unit's output relative to its square, rounded to nearest, behind
            the units before it; in a later stage with what the stages before it learned. A stage measures
            what it quantises, weighted as its loss is. None where it is no finite number.
        error_after: the same with what was learned.
        batch: images a step: the recipe's number, fewer where the unit's tensors are large or there are fewer
            images.
        dropped: share of the values in its input that were float ones while it was learned.
    """

    name: str
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    error_before: float | None
    error_after: float | None
    batch: int
    dropped: float


@dataclass(frozen=True, kw_only=True)
class MlpRecord:
    """What MLP reconstruction did to one MLP before anything was quantised.

    Attributes:
        name: module path that its layers share.
        layers: the normalisation in front, where it has one, and the two linear layers; empty where the MLP
            keeps GELU.
        error_before: squared error of the MLP's output relative to its square in the float model, with ReLU
            simply put in the place of GELU, behind the MLPs learned before; None where it is no finite
            number.
        error_after: the same with what was learned, also where that was not good enough to be taken.
    """

    name: str
    layers: tuple[str, ...]
    error_before: float | None
    error_after: float | None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How the integers were learned.

    Attributes:
        preset: name of the recipe.
        iters: steps a unit.
        images: calibration images learned from.
        seed: of batches and masks.
        device: where it was learned, cpu or cuda.
        threads: of the CPU.
        units: those with something to learn, stage after stage in graph order.
        mlps: in graph order; empty where GELU was left alone, or there is no such MLP.
        mlp_iters: steps an MLP, 0 where there is none.
    """

    preset: str
    iters: int
    images: int
    seed: int
    device: str
    threads: int
    units: tuple[UnitRecord, ...]
    mlps: tuple[MlpRecord, ...] = ()
    mlp_iters: int = 0


@dataclass(frozen=True, kw_only=True)
class WidthOption:
    """One width that a layer could have had.

    Attributes:
        bits: of its weights.
        loss: mean Kullback-Leibler divergence from the float model's output, in nats, with only this layer's
            weights rounded; four times the largest finite one where the output is no finite number.
        file_bytes: of its weights in the file.
    """

    bits: int
    loss: float
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What was chosen for one layer under a size budget, and from what.

    Attributes:
        name: of the layer.
        bits: chosen.
        options: ascending in bits.
    """

    name: str
    bits: int
    options: tuple[WidthOption, ...]


@dataclass(frozen=True, kw_only=True)
class WidthSearch:
    """How weight bits were chosen under a size budget.

    Attributes:
        budget_bytes: largest size of the file.
        smallest_bytes: size of the file with every layer at its fewest bits, measured.
        bound_bytes: upper bound of the file's size with the widths chosen.
        images: calibration images behind every loss.
        exponent: the programme that was kept minimises the sum over layers of loss ** exponent; None where a
            uniform width was kept.
        predicted: sum of the losses that the layers cost alone at the widths chosen.
        loss: measured with all layers rounded to the widths chosen, activations in float.
        uniform: the same with one width for all layers whose width is free, by bits; `fits` says which of
            them keep the budget.
        fits: see `uniform`.
        layers: those whose width was free, in graph order.
    """

    budget_bytes: int
    smallest_bytes: int
    bound_bytes: int
    images: int
    exponent: float | None
    predicted: float
    loss: float
    uniform: Mapping[int, float]
    fits: tuple[int, ...]
    layers: tuple[LayerChoice, ...]


@dataclass(frozen=True, kw_only=True)
class TensorLoss:
    """What one quantised tensor costs.

    Attributes:
        kind: weight (with its bias) or activation.
        name: of its site.
        sqnr_db: of the output with this tensor alone quantised, as `mixport.records.output_quality.sqnr_db`
            defines it.
    """

    kind: TensorKind
    name: str
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class LossSearch:
    """Where a bad output loses what it loses, on a few calibration images.

    Attributes:
        images: how many.
        sqnr_db: of the output with every tensor quantised.
        agreement: with the float model; None for one output value.
        tensors: those that cost most first.
    """

    images: int
    sqnr_db: float
    agreement: float | None
    tensors: tuple[TensorLoss, ...]
