"""Budgets of learned widths: what they are counted in, the loss that keeps them, and the last rounding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixport.records.errors import BadOptionError

Part = Literal["weights", "activations", "both"]
"""Whose widths a part of a budget bounds."""

_BITS = re.compile(r"w(?P<weights>[0-9]+(\.[0-9]+)?)a(?P<activations>[0-9]+(\.[0-9]+)?)")
_SIZE = re.compile(
    r"(?P<number>[0-9]{1,12}(\.[0-9]{1,12})?)(?P<unit>[kmg]i?b|b)(:a(?P<activations>[0-9]+(\.[0-9]+)?))?"
)
_BOPS = re.compile(r"(?P<number>[0-9]{1,12}(\.[0-9]{1,12})?)(?P<unit>[kmgt])?bops?")
_UNITS = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_PREFIX = {None: 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SPELLINGS = (
    "allowed wWaA with averages from 2 to 8 (w3a4, w2.5a4), a size of the file (90KB, 90KB:a4), or "
    "bit-operations an image (1.5GBOP)"
)
_DEFAULT_ACTIVATIONS = 8.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the widths may cost.

    Attributes:
        text: as it was asked for.
        weight_bits: average over the weights of all layers whose width is free; None where another budget
            bounds them.
        activation_bits: average over the values of all compute inputs whose width is free, for one image;
            None likewise.
        size_bytes: of the file; None without.
        bops: bit-operations of an image, sum over layers of MACs * weight bits * activation bits; None
            without.
    """

    text: str
    weight_bits: float | None = None
    activation_bits: float | None = None
    size_bytes: int | None = None
    bops: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read w3a4, 90KB, 90KB:a4 or 1.5GBOP. Raises BadOptionError."""
        plain = text.strip().lower()
        if (found := _BITS.fullmatch(plain)) is not None:
            weights, activations = float(found["weights"]), float(found["activations"])
            _check_average(text, weights)
            _check_average(text, activations)
            return cls(text=plain, weight_bits=weights, activation_bits=activations)
        if (found := _SIZE.fullmatch(plain)) is not None:
            activations = float(found["activations"] or _DEFAULT_ACTIVATIONS)
            _check_average(text, activations)
            size = int(float(found["number"]) * _UNITS[found["unit"]])
            return cls(text=plain, size_bytes=size, activation_bits=activations)
        if (found := _BOPS.fullmatch(plain)) is not None:
            return cls(text=plain, bops=float(found["number"]) * _PREFIX[found["unit"]])
        raise BadOptionError(
            f"--budget is {text!r}, {_SPELLINGS}", hint="mixport train --method nipq --budget w3a4 ..."
        )


def _check_average(text: str, bits: float) -> None:
    if not 2.0 <= bits <= 8.0:
        raise BadOptionError(
            f"--budget is {text!r}: an average is {bits:g} bits, {_SPELLINGS}",
            hint="mixport train --method nipq --budget w3a4 ...",
        )


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of two activations: attention.

    Attributes:
        macs: for one image.
        reads: number of the compute input that each operand reads, -1 for none of them.
        read_bits: of each operand where it is none of them.
    """

    macs: int
    reads: tuple[int, int]
    read_bits: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one bit costs at each site.

    Attributes:
        weights: of each layer: number of weights; 0 where its width is fixed.
        activations: of each compute input: values of one image; 0 where its width is fixed.
        macs: of each layer, for one image.
        reads: of each layer: number of the compute input that it reads, -1 where it reads none of them.
        read_bits: bits of what it reads where that is none of them.
        products: of two activations; they count in bit-operations alone.
        fixed_bytes: of the file without the weights whose width is free.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]
    macs: tuple[int, ...]
    reads: tuple[int, ...]
    read_bits: tuple[int, ...]
    products: tuple[Product, ...] = ()
    fixed_bytes: int = 0


def excess(budget: Budget, costs: Costs, weights: Tensor, activations: Tensor) -> Tensor:
    """How far widths are from the budget, in bits on average; a smooth L1 of each part, summed.

    NIPQ counts in MiB of bits, which makes the pull proportional to the model's size; here each part is
    divided by what one bit everywhere costs, so that one weight of the loss serves every model.

    Args:
        budget: what is allowed.
        costs: of the sites.
        weights: bits of each layer, float32.
        activations: bits of each compute input, float32.
    """
    total = weights.new_zeros(())
    for _, spent, allowed, bit in parts(budget, costs, weights, activations):
        total = total + torch.nn.functional.smooth_l1_loss(
            spent / bit, spent.new_tensor(allowed / bit), beta=0.1
        )
    return total


def parts(
    budget: Budget, costs: Costs, weights: Tensor, activations: Tensor
) -> list[tuple[Part, Tensor, float, float]]:
    """(what it bounds, spent, allowed, cost of one bit everywhere) of each part of the budget."""
    found: list[tuple[Part, Tensor, float, float]] = []
    counts = weights.new_tensor(costs.weights)
    values = activations.new_tensor(costs.activations)
    if budget.weight_bits is not None and sum(costs.weights):
        allowed = budget.weight_bits * sum(costs.weights)
        found.append(("weights", (weights * counts).sum(), allowed, sum(costs.weights)))
    if budget.size_bytes is not None and sum(costs.weights):
        spent = (weights * counts).sum() / 8 + costs.fixed_bytes
        found.append(("weights", spent, float(budget.size_bytes), sum(costs.weights) / 8))
    if budget.activation_bits is not None and sum(costs.activations):
        allowed = budget.activation_bits * sum(costs.activations)
        found.append(("activations", (activations * values).sum(), allowed, sum(costs.activations)))
    if budget.bops is not None:
        spent = bit_operations(costs, weights, activations)
        found.append(("both", spent, budget.bops, max(float(spent.detach()) / 8, 1.0)))
    return found


def bit_operations(costs: Costs, weights: Tensor, activations: Tensor) -> Tensor:
    """MACs * weight bits * activation bits, summed over all layers, for one image (NIPQ, BOPs loss); a
    product of two activations counts MACs * the bits of both.
    """
    total = (
        weights.new_tensor(costs.macs) * weights * _read(costs.reads, costs.read_bits, activations)
    ).sum()
    if costs.products:
        left, right = (
            _read(
                [one.reads[side] for one in costs.products],
                [one.read_bits[side] for one in costs.products],
                activations,
            )
            for side in (0, 1)
        )
        total = total + (weights.new_tensor([one.macs for one in costs.products]) * left * right).sum()
    return total


def _read(reads: Sequence[int], read_bits: Sequence[int], activations: Tensor) -> Tensor:
    """Bits of what is read: a compute input's where there is a number, else those that are fixed."""
    own = activations.new_tensor(read_bits)
    if not len(activations):
        return own
    places = torch.tensor(reads, device=activations.device, dtype=torch.int64)
    return torch.where(places >= 0, activations[places.clamp_min(0)], own)


def average(bits: Sequence[float], counts: Sequence[int]) -> float | None:
    """Average weighted by counts; None where nothing counts."""
    total = sum(counts)
    return sum(b * n for b, n in zip(bits, counts, strict=True)) / total if total else None
