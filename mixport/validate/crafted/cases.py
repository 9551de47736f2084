"""Adversarial inputs for one fused unit, from its actual integers: near ties, saturation, all codes, all
pairs, random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixport.arithmetic import integer
from mixport.validate.crafted.craft import Int, Rows, extreme, random_codes, reach_targets, tie_targets
from mixport.validate.crafted.windows import Layout, layout_of, place
from mixport.validate.interpreter.fused_units import CodeInput, FusedUnit
from mixport.validate.interpreter.graph import Array

NEAR_TIE, SATURATION, RANDOM = 128, 96, 32
"""Crafted windows a unit, by kind; together at most 256."""

_POOL_ROWS = 256
_MATMUL_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class CraftedCase:
    """Inputs of one run.

    Attributes:
        kind: near-tie, saturation, random, all-codes or all-pairs.
        feeds: codes by input name.
    """

    kind: str
    feeds: Mapping[str, Array]


def cases_for(
    unit: FusedUnit, *, shapes: Mapping[str, tuple[int | None, ...]], rng: np.random.Generator
) -> tuple[CraftedCase, ...]:
    """All cases of a unit.

    Args:
        unit: what to stress.
        shapes: shapes of the file's tensors, as far as known: pooling windows and inner sizes come from
            there.
        rng: source of every random choice.
    """
    if unit.kind in ("requantise", "table", "function"):
        # GatherElements wants an index of the table's rank.
        return (_all_codes(unit.inputs[0], flat=unit.node.op == "GatherElements"),)
    if unit.kind in ("add", "multiply"):
        return _all_pairs(unit)
    if unit.kind == "average":
        return _average(unit, shapes.get(unit.inputs[0].name), rng)
    if unit.weight is None:
        return _product(unit, shapes.get(unit.inputs[0].name), rng)
    return _layer(unit, rng)


def _all_codes(source: CodeInput, *, flat: bool = False) -> CraftedCase:
    codes = np.arange(source.low, source.high + 1).astype(source.dtype)
    return CraftedCase(kind="all-codes", feeds={source.name: codes if flat else codes[None, :]})


def _all_pairs(unit: FusedUnit) -> tuple[CraftedCase, ...]:
    a, b = unit.inputs
    if a.name == b.name:
        return (_all_codes(a),)
    left = np.arange(a.low, a.high + 1).astype(a.dtype)[:, None]
    right = np.arange(b.low, b.high + 1).astype(b.dtype)[None, :]
    full = [np.ascontiguousarray(x) for x in np.broadcast_arrays(left, right)]
    # Broadcasting runs another kernel (vector with scalar) than two tensors of one shape.
    return (
        CraftedCase(kind="all-pairs", feeds={a.name: full[0], b.name: full[1]}),
        CraftedCase(kind="all-pairs", feeds={a.name: full[0], b.name: np.ascontiguousarray(right)}),
        CraftedCase(kind="all-pairs", feeds={a.name: np.ascontiguousarray(left), b.name: full[1]}),
    )


def _layer(unit: FusedUnit, rng: np.random.Generator) -> tuple[CraftedCase, ...]:
    layout = layout_of(unit)
    source = unit.inputs[0]
    kinds: dict[str, Int] = {}
    if unit.saturation is not None:
        rows, windows = _rows(unit, layout, NEAR_TIE)
        targets = tie_targets(rows, zero_point=unit.saturation.zero_point, low=unit.low, high=unit.high)
        codes, _ = reach_targets(rows, targets, rng)
        kinds["near-tie"] = codes.reshape(windows, layout.groups, -1)
    rows, windows = _rows(unit, layout, SATURATION // 2)
    both = [extreme(rows, largest=largest).reshape(windows, layout.groups, -1) for largest in (True, False)]
    flat = [np.full((1, *both[0].shape[1:]), code, np.int64) for code in (source.low, source.high)]
    kinds["saturation"] = np.concatenate([*both, *flat])
    rows, windows = _rows(unit, layout, RANDOM)
    kinds["random"] = random_codes(rows, rng).reshape(windows, layout.groups, -1)
    return tuple(
        CraftedCase(kind=kind, feeds={source.name: place(codes, layout, source, rng)})
        for kind, codes in kinds.items()
    )


def _rows(unit: FusedUnit, layout: Layout, most: int) -> tuple[Rows, int]:
    """Rows for `windows` windows: in window t every group serves its output channel number t (evenly spaced
    where there are more).
    """
    assert unit.weight is not None and unit.weight_scale is not None
    source = unit.inputs[0]
    channels = unit.weight.shape[0]
    per_group = channels // layout.groups
    windows = min(most, layout.most_windows)
    order: Int = np.arange(windows, dtype=np.int64)
    picks: Int = order * (per_group - 1) // max(1, windows - 1) if per_group > windows else order % per_group
    chosen = (np.arange(layout.groups)[None, :] * per_group + picks[:, None]).reshape(-1)
    scale = np.broadcast_to(unit.weight_scale, (channels,))
    y_scale = np.float32(1) if unit.saturation is None else unit.saturation.scale
    bias = np.zeros(channels, np.int64) if unit.bias is None else np.broadcast_to(unit.bias, (channels,))
    rows = Rows(
        weights=unit.weight.reshape(channels, -1)[chosen],
        bias=bias[chosen],
        multiplier=integer.conv_multiplier(source.scale, scale, y_scale)[chosen],
        low=source.low,
        high=source.high,
        zero_point=source.zero_point,
    )
    return rows, windows


def _average(
    unit: FusedUnit, shape: tuple[int | None, ...] | None, rng: np.random.Generator
) -> tuple[CraftedCase, ...]:
    assert unit.saturation is not None
    source = unit.inputs[0]
    height, width = (shape[2] or 7, shape[3] or 7) if shape is not None and len(shape) == 4 else (7, 7)
    channels = 8
    multiplier = integer.average_multiplier(source.scale, unit.saturation.scale, height * width)
    rows = Rows(
        weights=np.ones((_POOL_ROWS, height * width), np.int64),
        bias=np.zeros(_POOL_ROWS, np.int64),
        multiplier=np.full(_POOL_ROWS, multiplier, np.float32),
        low=source.low,
        high=source.high,
        zero_point=source.zero_point,
    )
    targets = tie_targets(rows, zero_point=unit.saturation.zero_point, low=unit.low, high=unit.high)
    kinds = {
        "near-tie": reach_targets(rows, targets, rng)[0],
        "saturation": np.concatenate(
            [extreme(rows, largest=True)[:channels], extreme(rows, largest=False)[:channels]]
        ),
        "random": random_codes(rows, rng)[: RANDOM * channels],
    }
    return tuple(
        CraftedCase(
            kind=kind, feeds={source.name: codes.astype(source.dtype).reshape(-1, channels, height, width)}
        )
        for kind, codes in kinds.items()
    )


def _product(
    unit: FusedUnit, shape: tuple[int | None, ...] | None, rng: np.random.Generator
) -> tuple[CraftedCase, ...]:
    """Products of two code tensors: row i of the left one is crafted against column i of the right one."""
    a, b = unit.inputs
    inner = (shape[-1] if shape else None) or 64
    right = rng.integers(b.low, b.high + 1, (inner, _MATMUL_SIDE))
    y_scale = np.float32(1) if unit.saturation is None else unit.saturation.scale
    rows = Rows(
        weights=np.ascontiguousarray((right - b.zero_point).T),
        bias=np.zeros(_MATMUL_SIDE, np.int64),
        multiplier=np.full(_MATMUL_SIDE, integer.conv_multiplier(a.scale, b.scale, y_scale), np.float32),
        low=a.low,
        high=a.high,
        zero_point=a.zero_point,
    )

    def case(kind: str, left: Int, other: Int) -> CraftedCase:
        return CraftedCase(
            kind=kind, feeds={a.name: left.astype(a.dtype)[None], b.name: other.astype(b.dtype)[None]}
        )

    cases = [case("random", random_codes(rows, rng), right)]
    cases += [case("saturation", extreme(rows, largest=largest), right) for largest in (True, False)]
    cases += [
        case("saturation", np.full((_MATMUL_SIDE, inner), left), np.full((inner, _MATMUL_SIDE), other))
        for left in (a.low, a.high)
        for other in (b.low, b.high)
    ]
    if unit.saturation is not None:
        targets = tie_targets(rows, zero_point=unit.saturation.zero_point, low=unit.low, high=unit.high)
        cases.append(case("near-tie", reach_targets(rows, targets, rng)[0], right))
    return tuple(cases)
