"""Bit widths and scales tensor by tensor, from whatever chose them: a search, training, a file."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mixport.records.errors import BadOptionError


@dataclass(frozen=True, kw_only=True)
class WidthTable:
    """Widths that differ from those of the scheme.

    Attributes:
        weights: bits by layer, under the names that layers have in the manifest.
        activations: bits of the codes that layers and products read, by the name of the tensor's site.
            Carriers (tensors that meet at an add, a concat, a multiply or a pool) keep their own.
        weight_scales: scales by layer, one for each output channel; others are chosen.
        steps: (scale, zero point) by the same names as `activations`; others are calibrated.
    """

    weights: Mapping[str, int] = field(default_factory=dict[str, int])
    activations: Mapping[str, int] = field(default_factory=dict[str, int])
    weight_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    steps: Mapping[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])

    def check(
        self,
        *,
        layers: Collection[str],
        sites: Collection[str],
        weight_bits: Collection[int],
        activation_bits: Collection[int],
    ) -> None:
        """Refuse names that the model does not have and widths that the target does not have.

        Raises:
            BadOptionError: the first of them, with what is allowed.
        """
        for what, named, known in (
            ("layer", self.weight_scales, self.weights),
            ("site", self.steps, self.activations),
        ):
            if missing := named.keys() - known.keys():
                raise BadOptionError(
                    f"width table: {what} {min(missing)} has a scale and no bits, allowed both or bits alone",
                    hint="add its bits",
                )
        for what, table, known, allowed in (
            ("layer", self.weights, layers, weight_bits),
            ("site", self.activations, sites, activation_bits),
        ):
            for name, bits in table.items():
                if name not in known:
                    near = difflib.get_close_matches(name, [*known], n=1, cutoff=0.3)
                    raise BadOptionError(
                        f"width table: the model has no {what} {name!r} whose width is free, allowed: "
                        f"{', '.join(sorted(known)[:8])} ...",
                        hint=f"did you mean {near[0]!r}?" if near else "names are those of manifest.json",
                    )
                if bits not in allowed:
                    raise BadOptionError(
                        f"width table: {what} {name} has {bits} bits, allowed "
                        f"{', '.join(map(str, sorted(allowed)))}",
                        hint="mixport targets show TARGET",
                    )
