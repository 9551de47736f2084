"""One weight through many widths: a bundle for each, their table and plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixport.pipeline.build_bundle import build_all
from mixport.pipeline.build_target import BuildOutcome
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.drawing import DrawOptions
from mixport.pipeline.options.model_options import ModelOptions
from mixport.pipeline.options.train_options import SweepOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.trained import RECORD_FILE, read_training
from mixport.records.errors import BadInputError, BadOptionError, StoreError
from mixport.records.progress import Progress
from mixport.release.sweep_plot import sweep_plot

SWEEP_FILE, PLOT_FILE = "sweep.json", "sweep.svg"
_SHARED = ("target", "edge_bits", "edge_convention", "calib", "images", "seed", "eval", "cache")
"""Options that every build of a sweep gets as they are, besides those of model and drawing."""
_WIDEST_ROUNDED = 8


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One exported file.

    Attributes:
        scheme: of its widths.
        iters: reconstruction steps per unit; 0 where codes are rounded to nearest.
        bundle: its folder.
        size_bytes: of model.onnx.
        top1: in percent, None without labelled images.
        top1_float: of the float model, likewise.
        agreement: with the float model, from 0 to 1.
        sqnr_db: of the output.
        verdict: of the validation.
        mismatches: codes that differ.
    """

    scheme: str
    iters: int
    bundle: str
    size_bytes: int
    top1: float | None
    top1_float: float | None
    agreement: float | None
    sqnr_db: float | None
    verdict: str
    mismatches: int


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A table, and where it lies.

    Attributes:
        path: folder of table, plot and bundles.
        model: as it was named.
        rows: in the order asked.
        failures: why some must not ship.
    """

    path: Path
    model: str
    rows: tuple[SweepRow, ...]
    failures: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": str(self.path),
            "model": self.model,
            "rows": [asdict(row) for row in self.rows],
            "failures": list(self.failures),
        }


def run_sweep(
    options: SweepOptions,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    on_row: Callable[[SweepRow], None] | None = None,
) -> Sweep:
    """Build every scheme with every number of steps, and write sweep.json and sweep.svg.

    Steps count for codes narrower than 8 bits; a scheme without any is built once.

    Args:
        options: of `mixport sweep`.
        progress: shows bars.
        note: is told what happens.
        on_row: is told each row when it is done.

    Raises:
        MixportError: see the subclasses; bundles that are done stay, and are not built again.
    """
    shared, model = _shared(options)
    out = options.out or Path("dist") / f"{_name(options, model)}-sweep"
    rows, failures = list[SweepRow](), list[str]()
    for scheme, iters in _points(options):
        name = scheme.replace(":", "-") + (f"-{iters}" if iters else "")
        if note is not None:
            note(f"{name} ...")
        built = BuildOptions.of({**shared, "scheme": scheme, "iters": iters, "out": out / name})
        (outcome,) = build_all(built, progress=progress, note=note)
        row = _row(outcome, scheme, iters)
        rows.append(row)
        failures += [f"{name}: {failure}" for failure in outcome.failures]
        if on_row is not None:
            on_row(row)
    made = Sweep(path=out, model=options.model, rows=tuple(rows), failures=tuple(failures))
    try:
        (out / SWEEP_FILE).write_text(json.dumps(made.document(), indent=1) + "\n", encoding="utf-8")
        points = [(row.scheme, row.iters, _figure(row)) for row in rows]
        (out / PLOT_FILE).write_text(sweep_plot(points, top1=rows[0].top1 is not None), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{out} cannot be written: {error.strerror or error}", hint="choose another folder with --out DIR"
        ) from error
    return made


def _figure(row: SweepRow) -> float | None:
    if row.top1 is not None:
        return row.top1
    return None if row.agreement is None else 100.0 * row.agreement


def _points(options: SweepOptions) -> list[tuple[str, int]]:
    points: list[tuple[str, int]] = []
    for text in options.schemes:
        scheme = Scheme.parse(text, edge_bits=options.edge_bits, edge_convention=options.edge_convention)
        learns = min(scheme.weight_bits, scheme.activation_bits, scheme.edge_bits) < _WIDEST_ROUNDED
        points += [(scheme.name, iters) for iters in (options.iters if learns else (0,))]
    return list(dict.fromkeys(points))


def _shared(options: SweepOptions) -> tuple[dict[str, object], str]:
    """Options of every build, and the float model's name; MODEL may be the folder of a training."""
    given = {
        name: getattr(options, name)
        for name in (*ModelOptions.model_fields, *DrawOptions.model_fields, *_SHARED)
        if name in options.model_fields_set or name in _SHARED
    }
    if options.trained is not None:
        given["trained"] = options.trained
    folder = Path(options.model)
    if not folder.is_dir():
        return {**given, "model": options.model}, options.model
    if options.trained is not None:
        raise BadOptionError(
            f"--trained {options.trained} has no effect with MODEL {folder}, a training's folder itself",
            hint="leave one of them out",
        )
    if not (folder / RECORD_FILE).is_file():
        raise BadInputError(
            f"MODEL is the folder {folder}, which holds no {RECORD_FILE}",
            hint="a folder that mixport train --out wrote, or a MODEL as in mixport build",
        )
    record = read_training(folder)
    if record.scheme is not None:
        raise BadOptionError(
            f"{folder} was trained for one set of widths ({record.budget}), which a sweep cannot change",
            hint=f"mixport build {record.model['source']} --trained {folder}",
        )
    opened = {name: value for name, value in record.model_options.items() if name not in given}
    return {**opened, **given, "model": record.model["source"], "trained": folder}, record.model["source"]


def _name(options: SweepOptions, model: str) -> str:
    folder = Path(options.model)
    return folder.name if folder.is_dir() else Path(model.rpartition(":")[2]).stem.replace("/", "_")


def _row(outcome: BuildOutcome, scheme: str, iters: int) -> SweepRow:
    manifest = outcome.bundle.manifest
    metrics: Mapping[str, Any] = manifest.metrics.model_dump()
    return SweepRow(
        scheme=scheme,
        iters=iters,
        bundle=str(outcome.bundle.path),
        size_bytes=metrics["size_bytes"],
        top1=metrics["top1_quantized"],
        top1_float=metrics["top1_float"],
        agreement=metrics["agreement"],
        sqnr_db=metrics["sqnr_db"],
        verdict=manifest.validation.verdict,
        mismatches=sum(one.mismatches for one in manifest.validation.runtimes),
    )
