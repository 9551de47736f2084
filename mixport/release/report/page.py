"""One self-contained HTML page from a manifest: no scripts, no external resources, light and dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mixport.release.calibration_entries import CalibrationEntry
from mixport.release.manifest import Manifest
from mixport.release.report.plots import size_figure, sqnr_figure, unit_figure
from mixport.release.report.script import recheck_script
from mixport.release.report.strip import StripImage

_HERE = Path(__file__).resolve().parent
_WEAKEST = 5
_TABLES = ("nodes", "violations")
"""Proofs that the page shows as tables of their own."""


@dataclass(frozen=True, kw_only=True)
class _Proof:
    name: str
    value: str
    detail: str | None


def render(manifest: Manifest, *, strip: Sequence[StripImage] = ()) -> str:
    """The page as text. Everything from the manifest is escaped; the same manifest and strip give the same
    page.

    Args:
        manifest: of the bundle.
        strip: calibration images to show, none for none.
    """
    # StrictUndefined: a name missing from the template's data is our bug, and shows at once.
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(bytes=_bytes, number=_number, percent=_percent)
    weights = [site for site in manifest.sites if site.kind == "weight"]
    activations = [site for site in manifest.sites if site.kind == "activation"]
    measured = sorted(
        (site for site in activations if site.sqnr_db is not None),
        key=lambda site: cast("float", site.sqnr_db),
    )
    float_bytes = manifest.metrics.float_bytes
    figure = sqnr_figure(activations)
    units = unit_figure(manifest.reconstruction.units) if manifest.reconstruction is not None else None
    return environment.get_template("page.html.j2").render(
        m=manifest,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        weights=weights,
        activations=activations,
        weakest=measured[:_WEAKEST],
        failed_gates=[gate for gate in manifest.gates if not gate.passed],
        sqnr_figure=Markup(figure) if figure else None,
        unit_figure=Markup(units) if units else None,
        size_figure=Markup(size_figure(float_bytes=float_bytes, size_bytes=manifest.metrics.size_bytes))
        if float_bytes
        else None,
        proofs=[
            _proof(name, value) for name, value in manifest.validation.proofs.items() if name not in _TABLES
        ],
        proved_nodes=_rows(manifest, "nodes"),
        violations=_rows(manifest, "violations"),
        script=recheck_script(manifest.validation.session_policy),
        compared=sum(runtime.values for runtime in manifest.validation.runtimes),
        mismatches=sum(runtime.mismatches for runtime in manifest.validation.runtimes),
        strip=strip,
        drawing=_drawing(manifest.calibration),
    )


def _drawing(calibration: CalibrationEntry) -> list[tuple[str, str]]:
    """What is known of how the images were drawn, in rows; empty for images that were not."""
    parts = {
        "generator": calibration.generator_details,
        "prompts": calibration.prompts,
        "filters": calibration.filters,
    }
    return [
        (f"{title}: {name.replace('_', ' ')}", _setting(value))
        for title, part in parts.items()
        if part is not None
        for name, value in part.model_dump().items()
        if value is not None and value != ""
    ]


def _setting(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, cast("Sequence[object]", value)))
    return _number(value)


def _rows(manifest: Manifest, name: str) -> list[Mapping[str, Any]]:
    """Records of one proof; none where the manifest has none of that name."""
    rows = manifest.validation.proofs.get(name, ())
    return [
        cast("Mapping[str, Any]", row) for row in cast("Sequence[object]", rows) if isinstance(row, Mapping)
    ]


def _proof(name: str, value: object) -> _Proof:
    shown = name.replace("_", " ")
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        plain = {key: item for key, item in fields.items() if not isinstance(item, (Mapping, list, tuple))}
        summary = ", ".join(f"{key.replace('_', ' ')}: {_number(item)}" for key, item in plain.items())
        return _Proof(name=shown, value=summary, detail=_json(fields) if len(plain) < len(fields) else None)
    if isinstance(value, (list, tuple)):
        items = cast("list[object]", value)
        return _Proof(name=shown, value=f"{len(items)} entries", detail=_json(items) if items else None)
    return _Proof(name=shown, value=_number(value), detail=None)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _bytes(value: int | None) -> str:
    if value is None:
        return "-"
    if value < 1000:
        return f"{value} B"
    return f"{value / 1000:.1f} kB" if value < 1_000_000 else f"{value / 1_000_000:.2f} MB"
