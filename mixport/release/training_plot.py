"""The plot of a training: loss and held-out accuracy by epoch, and the widths that were learned."""

# matplotlib's stubs leave its **kwargs without a type.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixport.records.choices.trained import EpochRecord, SitesFile

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "training",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
_LOSS, _RIGHT = "#4c6ef5", "#2b8a3e"


def training_plot(curve: Sequence[EpochRecord], sites: SitesFile | None, *, labels: bool) -> str:
    """One SVG: the curve, and below it the bits of every layer and site where there are some.

    Args:
        curve: one entry an epoch.
        sites: widths; None for methods that choose none.
        labels: held-out figures are accuracies, else agreements.
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(9.0, 3.0 if sites is None else 6.4), layout="constrained")
        if sites is None:
            _curve(figure.subplots(), curve, labels=labels)
        else:
            above, weights, activations = figure.subplots(3, 1)
            _curve(above, curve, labels=labels)
            _bits(weights, {name: one.bits for name, one in sites.layers.items()}, "weight bits")
            _bits(activations, {name: one.bits for name, one in sites.sites.items()}, "activation bits")
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
        return text.getvalue()


def _curve(axes: Axes, curve: Sequence[EpochRecord], *, labels: bool) -> None:
    epochs = [one.epoch for one in curve]
    axes.plot(epochs, [one.loss for one in curve], color=_LOSS, marker="o", markersize=3)
    axes.set_ylabel("loss", color=_LOSS)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    beside = axes.twinx()
    beside.plot(epochs, [100 * one.held_out for one in curve], color=_RIGHT, marker="o", markersize=3)
    beside.set_ylabel(f"held out: {'accuracy' if labels else 'agreement'} (%)", color=_RIGHT)
    for before, after in pairwise(curve):
        if before.phase != after.phase:
            axes.axvline(after.epoch - 0.5, color="#868e96", linewidth=0.8, linestyle=":")
            axes.annotate(after.phase, (after.epoch - 0.45, axes.get_ylim()[1]), va="top", fontsize=8)


def _bits(axes: Axes, bits: dict[str, int], label: str) -> None:
    axes.bar(range(len(bits)), list(bits.values()), color=_LOSS, width=0.72)
    axes.set_ylabel(label)
    axes.set_ylim(0, 8.5)
    axes.set_xticks(range(len(bits)), list(bits), rotation=60, ha="right", fontsize=6)
