"""Integers that a training chose, read from its folder: nothing is calibrated, rounded or learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import fx

from mixport.arithmetic.dtypes import IntType
from mixport.arithmetic.quant_params import QuantParams
from mixport.model.programs.fx_graph import shape_of, tensor_arg
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.prepared import Assignment, Prepared
from mixport.quantize.sites.site_plan import SitePlan
from mixport.records.choices.trained import INTEGERS_FILE, SITES_FILE, SiteChoice, SitesFile, read_sites
from mixport.records.errors import BadInputError

_HINT = "run the same mixport train command again, or build with the model, target and weights it was given"


@dataclass(frozen=True, kw_only=True)
class ChooseTrained:
    """A `Choose`: exactly the integers of a training.

    Attributes:
        folder: that `mixport train` wrote.
    """

    folder: Path

    def __call__(self, prepared: Prepared, context: ChoiceContext) -> Assignment:
        """Raises BadInputError where the folder does not hold every layer and site of this graph."""
        sites = read_sites(self.folder / SITES_FILE)
        return Assignment(
            params={site.name: _params(sites, site, self.folder) for site in prepared.plan.sites},
            widths=prepared.widths,
            integers=_integers(prepared, _tensors(self.folder / INTEGERS_FILE), self.folder),
        )


def _params(sites: SitesFile, site: SitePlan, folder: Path) -> QuantParams:
    found = sites.sites.get(site.base or site.name) if site.role == "compute" else None
    choice: SiteChoice | None = found or sites.carriers.get(site.name)
    if choice is None or choice.bits != site.bits:
        got = "nothing" if choice is None else f"{choice.bits} bits"
        raise BadInputError(
            f"{folder / SITES_FILE}: {got} for site {site.name}, allowed its {site.bits} bits", hint=_HINT
        )
    values = (choice.scale, choice.zero_point, choice.lowest, choice.highest)
    scale, zero_point, lowest, highest = values
    if scale is None or zero_point is None or lowest is None or highest is None:
        raise BadInputError(
            f"{folder / SITES_FILE}: site {site.name} lacks scale, zero_point, lowest or highest",
            hint="--sites takes what is there, --trained a training's whole folder",
        )
    if highest - lowest >= 2**site.bits:
        raise BadInputError(
            f"{folder / SITES_FILE}: site {site.name}: codes [{lowest}, {highest}], allowed "
            f"{2**site.bits} of {site.bits} bits",
            hint=_HINT,
        )
    try:
        return QuantParams(
            scale=float(np.float32(scale)),
            zero_point=zero_point,
            qmin=lowest,
            qmax=highest,
            storage="int16" if site.bits > 8 else "uint8",
        )
    except ValueError as error:
        raise BadInputError(f"{folder / SITES_FILE}: site {site.name}: {error}", hint=_HINT) from error


def _integers(
    prepared: Prepared, tensors: Mapping[str, np.ndarray[Any, Any]], folder: Path
) -> dict[fx.Node, LayerIntegers]:
    found: dict[fx.Node, LayerIntegers] = {}
    path = folder / INTEGERS_FILE
    for node, width in prepared.widths.items():
        kind = IntType(bits=width.bits, signed=True, narrow=width.bits == 8)
        shape = shape_of(tensor_arg(node, 1))
        codes, scales = tensors.get(f"codes/{width.name}"), tensors.get(f"scales/{width.name}")
        if codes is None or scales is None:
            raise BadInputError(f"{path}: no codes and scales of layer {width.name}", hint=_HINT)
        bias = tensors.get(f"bias/{width.name}")
        for what, got, dtype, wanted in (
            ("codes", codes, np.int8, tuple(shape)),
            ("scales", scales, np.float32, tuple(shape[:1])),
            *((("bias", bias, np.float32, tuple(shape[:1])),) if bias is not None else ()),
        ):
            if got.dtype != dtype or got.shape != wanted:
                raise BadInputError(
                    f"{path}: {what} of {width.name} are {got.dtype} {got.shape}, allowed "
                    f"{np.dtype(dtype)} {wanted}",
                    hint=_HINT,
                )
        if codes.min() < kind.qmin or codes.max() > kind.qmax:
            raise BadInputError(
                f"{path}: codes of {width.name} go from {codes.min()} to {codes.max()}, allowed "
                f"{kind.qmin} to {kind.qmax} of {width.bits} bits",
                hint=_HINT,
            )
        if not (np.isfinite(scales).all() and (scales > 0).all()) or (
            bias is not None and not np.isfinite(bias).all()
        ):
            raise BadInputError(
                f"{path}: scales and bias of {width.name} must be finite, scales above 0", hint=_HINT
            )
        if (bias is None) != (len(node.args) <= 2 or node.args[2] is None):
            raise BadInputError(f"{path}: layer {width.name} has a bias in one of model and file", hint=_HINT)
        found[node] = LayerIntegers(codes=codes, scales=scales, bias=bias)
    return found


def _tensors(path: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInputError(f"{path} is missing, damaged or not safetensors: {error}", hint=_HINT) from error
