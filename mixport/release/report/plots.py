"""Figures of the report, as SVG that takes the page's colours."""

# matplotlib's stubs leave its **kwargs without a type.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mixport.release.choice_entries import UnitEntry
from mixport.release.manifest import SiteEntry

#: Colours that no figure uses otherwise, and what the page puts in their place, so that light and dark mode
#: both work.
_INK, _ACCENT, _MUTED, _WARN = "#010203", "#010204", "#010205", "#010206"
_PAGE_COLOURS = {_INK: "currentColor", _ACCENT: "var(--accent)", _MUTED: "var(--muted)", _WARN: "var(--warn)"}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "text.parse_math": False,
}
_NAMED_SITES = 40
_LONGEST_NAME = 34
_WEAK_DB = 10.0


def sqnr_figure(sites: Sequence[SiteEntry]) -> str | None:
    """Bars of SQNR in dB, one a site, in graph order; None where no site has one. Sites below 10 dB stand
    out.
    """
    measured = [(site.name, site.sqnr_db) for site in sites if site.sqnr_db is not None]
    if not measured:
        return None
    names, values = zip(*measured, strict=True)
    colours = [_WARN if value < _WEAK_DB else _ACCENT for value in values]
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": "sqnr"}):
        named = len(names) <= _NAMED_SITES
        figure = Figure(figsize=(10.0, 3.9 if named else 2.8), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(values)), values, color=colours, width=0.72)
        axes.set_ylabel("SQNR (dB)")
        axes.set_xlim(-0.7, len(values) - 0.3)
        axes.grid(axis="y", color=_MUTED, alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
        if named:
            axes.set_xticks(
                range(len(names)),
                [_shortened(name) for name in names],
                rotation=55,
                ha="right",
                rotation_mode="anchor",
            )
            axes.tick_params(axis="x", length=0)
        else:
            axes.set_xlabel("activation site, in graph order")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, label="SQNR of each activation site")


def unit_figure(units: Sequence[UnitEntry]) -> str | None:
    """Two bars a unit, in graph order: the error of its output before, and with what was learned; None
    without any.
    """
    measured = [
        (unit.name, unit.error_before, unit.error_after)
        for unit in units
        if unit.error_before and unit.error_after
    ]
    if not measured:
        return None
    names, before, after = zip(*measured, strict=True)
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": "units"}):
        named = len(names) <= _NAMED_SITES
        figure = Figure(figsize=(10.0, 3.9 if named else 2.8), layout="constrained")
        axes = figure.subplots()
        axes.bar(
            [place - 0.2 for place in range(len(names))], before, color=_MUTED, width=0.4, label="before"
        )
        axes.bar(
            [place + 0.2 for place in range(len(names))], after, color=_ACCENT, width=0.4, label="learned"
        )
        axes.set_yscale("log")
        _plain_log_ticks(axes, low=min((*before, *after)), high=max((*before, *after)))
        axes.set_ylabel("relative squared error")
        axes.set_xlim(-0.7, len(names) - 0.3)
        axes.grid(axis="y", color=_MUTED, alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        if named:
            axes.set_xticks(
                range(len(names)),
                [_shortened(name) for name in names],
                rotation=55,
                ha="right",
                rotation_mode="anchor",
            )
            axes.tick_params(axis="x", length=0)
        else:
            axes.set_xlabel("unit, in graph order")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, label="error of each unit before and after reconstruction")


def size_figure(*, float_bytes: int, size_bytes: int) -> str:
    """Two bars: the float parameters, and the quantised file."""
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": "size"}):
        figure = Figure(figsize=(10.0, 1.25), layout="constrained")
        axes = figure.subplots()
        labels = ["float32 parameters", "model.onnx"]
        bars = axes.barh(labels, [float_bytes / 1e6, size_bytes / 1e6], color=[_MUTED, _ACCENT], height=0.62)
        axes.bar_label(
            bars, labels=[f"{value / 1e6:.3f} MB" for value in (float_bytes, size_bytes)], padding=5
        )
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure, label="size of the float parameters and of model.onnx")


def _plain_log_ticks(axes: Axes, *, low: float, high: float) -> None:
    """Decades as 0.01, and what lies between them only where there are less than two: matplotlib writes
    powers as TeX, unasked.
    """
    plain = FuncFormatter(_plain)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 10.0 * low else NullFormatter())


def _plain(value: float, _place: int) -> str:
    return f"{value:g}"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME + 1 :]


def _svg(figure: Figure, *, label: str) -> str:
    buffer = io.StringIO()
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Inside HTML the namespaces are implied, and the size is the page's matter.
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'\s(width|height)="[^"]*pt"', "", text, count=2)
    # Two figures on one page must not share names: only those that something refers to stay, and they hold a
    # hash.
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r'\sid="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).replace("xlink:href", "href")
    for colour, replacement in _PAGE_COLOURS.items():
        text = text.replace(colour, replacement)
    return text
