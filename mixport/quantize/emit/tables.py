"""Functions of one value on codes: the 256 entries, and the form in which lowering writes them.

The entries are the function in float64, quantised once. Where the target says that its runtime computes the
float function faster than it reads a table, and every runtime is proved to give the table's entries
(mixport.arithmetic.float_functions), the file holds the function. So it does with a table that is straight
between the codes at which it saturates, a mere requantisation (mixport.arithmetic.affine_tables). A proof
fails where an entry lies next to the boundary of two codes: the scale then moves by units in the last place,
if nothing else is tied to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.arithmetic import integer
from mixport.arithmetic.affine_tables import FORM as REQUANTISATION
from mixport.arithmetic.affine_tables import find_requantisation, is_straight
from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, TABLE, proved_codes
from mixport.arithmetic.multiplication import moved_scales
from mixport.arithmetic.quant_params import QuantParams
from mixport.model.programs.fx_graph import argument, aten, operator_of

_KEYS: Mapping[Any, str] = MappingProxyType(
    {
        aten.sigmoid.default: "Sigmoid",
        aten.tanh.default: "Tanh",
        aten.hardsigmoid.default: "HardSigmoid",
        aten.hardswish.default: "HardSwish",
    }
)
_GELUS: Mapping[str, str] = MappingProxyType({"none": "Gelu", "tanh": "Gelu/tanh"})
_BYTE_TABLES = frozenset({"Sigmoid"})
"""Functions that runtimes make a byte table themselves: nothing is faster."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One function of codes, settled.

    Attributes:
        entries: uint8 [256].
        params: of the entries; `qmin` and `qmax` are the smallest and the largest of them.
        form: key of FLOAT_FUNCTIONS, or `table`.
    """

    entries: NDArray[np.uint8]
    params: QuantParams
    form: str


def _anything(params: QuantParams) -> bool:
    return True


def make_table(
    chain: tuple[fx.Node, ...],
    source: QuantParams,
    params: QuantParams,
    *,
    floats: frozenset[str] = frozenset(),
    may_move: bool = False,
    accepts: Callable[[QuantParams], bool] = _anything,
) -> Table:
    """Settle entries and form.

    Args:
        chain: operators of one value, first to last.
        source: of the uint8 codes that the first one reads.
        params: of the result.
        floats: keys of the functions that the target computes faster in float.
        may_move: the scale is nobody else's, and may have any value.
        accepts: what else a moved scale should satisfy; the given one is taken where none does.
    """
    key = float_function(chain)
    scales = tuple(moved_scales(params.scale)) if may_move else (params.scale,)
    if REQUANTISATION in floats and key not in _BYTE_TABLES:
        affine = _requantised(chain, source, params, scales, accepts)
        if affine is not None:
            return affine
    if key in floats and params.qmin == 0 and params.qmax == 255:
        proved: Table | None = None
        for scale in scales:
            moved = replace(params, scale=scale)
            codes = proved_codes(FLOAT_FUNCTIONS[key], source, moved)
            made = None if codes is None else Table(entries=codes, params=_within(moved, codes), form=key)
            if made is not None and accepts(made.params):
                return made
            proved = proved or made
        if proved is not None:
            return proved
    plain: Table | None = None
    for scale in scales:
        moved = replace(params, scale=scale)
        entries = _entries(chain, source, moved)
        made = Table(entries=entries, params=_within(moved, entries), form=TABLE)
        if accepts(made.params):
            return made
        plain = plain or made
    assert plain is not None
    return plain


def float_function(chain: tuple[fx.Node, ...]) -> str | None:
    """Key of the float function that a chain is, None for a chain of several or of others."""
    if len(chain) != 1:
        return None
    node = chain[0]
    if node.target is aten.gelu.default:
        return _GELUS.get(str(argument(node, 1, "approximate") or "none"))
    return _KEYS.get(node.target)


def _requantised(
    chain: tuple[fx.Node, ...],
    source: QuantParams,
    params: QuantParams,
    scales: tuple[float, ...],
    accepts: Callable[[QuantParams], bool],
) -> Table | None:
    """The table of the first scale for which it is a requantisation, and acceptable; None where the first one
    is far from it.
    """
    for scale in scales:
        moved = replace(params, scale=scale)
        entries = _entries(chain, source, moved)
        if find_requantisation(entries) is not None and accepts(_within(moved, entries)):
            return Table(entries=entries, params=_within(moved, entries), form=REQUANTISATION)
        if not is_straight(entries):
            return None
    return None


def _entries(chain: tuple[fx.Node, ...], source: QuantParams, params: QuantParams) -> NDArray[np.uint8]:
    values: Tensor = (torch.arange(256, dtype=torch.float64) - source.zero_point) * source.scale
    for node in chain:
        values = operator_of(node)(values, *node.args[1:], **node.kwargs)
    codes = integer.quantise(
        values.float().numpy(),
        scale=params.scale,
        zero_point=params.zero_point,
        qmin=params.qmin,
        qmax=params.qmax,
    )
    return codes.astype(np.uint8)


def _within(params: QuantParams, entries: NDArray[np.uint8]) -> QuantParams:
    low, high = int(entries.min()), int(entries.max())
    if low == high:  # a range holds two codes
        low, high = min(low, params.qmax - 1), min(low, params.qmax - 1) + 1
    return replace(params, qmin=low, qmax=high)
