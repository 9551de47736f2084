"""The plot of a sweep: accuracy or agreement of one weight at many widths."""

# matplotlib's stubs leave its **kwargs without a type.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mixport.release.training_plot import SETTINGS


def sweep_plot(points: Sequence[tuple[str, int, float | None]], *, top1: bool) -> str:
    """One SVG: schemes from left to right, a line for each number of reconstruction steps.

    Args:
        points: (scheme, steps, percent or None), in the order of the table.
        top1: percents are accuracies, else agreements.
    """
    schemes = list(dict.fromkeys(scheme for scheme, _, _ in points))
    most = sorted({steps for _, steps, _ in points})
    alone = {scheme for scheme in schemes if sum(one == scheme for one, _, _ in points) < len(most)}
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": "sweep"}):
        figure = Figure(figsize=(7.0, 3.4), layout="constrained")
        axes = figure.subplots()
        for steps in most:
            # A scheme that learns nothing has one row, which belongs to every line.
            line = [
                (schemes.index(scheme), value)
                for scheme, own, value in points
                if value is not None and (own == steps or scheme in alone)
            ]
            label = "rounded to nearest" if steps == 0 else f"{steps} reconstruction steps"
            axes.plot([x for x, _ in line], [y for _, y in line], marker="o", markersize=4, label=label)
        axes.set_xticks(range(len(schemes)), schemes)
        axes.set_ylabel("top-1 (%)" if top1 else "agreement with the float model (%)")
        axes.legend(frameon=False)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
        return text.getvalue()
