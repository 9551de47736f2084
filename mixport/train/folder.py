"""The folder that a training leaves: weights, sites, integers, record and plot; whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.choices.trained import (
    INTEGERS_FILE,
    PLOT_FILE,
    RECORD_FILE,
    SITES_FILE,
    TRAINED_FILES,
    WEIGHTS_FILE,
    LayerChoice,
    SiteChoice,
    SitesFile,
    TrainingRecord,
    read_training,
)
from mixport.records.errors import BadInputError, MixportError, StoreError
from mixport.records.fingerprint import sha256_file
from mixport.storage import atomic
from mixport.storage.out_folder import is_free


def write_folder(
    out: Path,
    record: TrainingRecord,
    *,
    weights: Mapping[str, Tensor],
    sites: SitesFile | None,
    integers: Mapping[str, Tensor] | None,
    plot: str,
) -> TrainingRecord:
    """Write beside `out`, then put in place in one step; a training's older folder there is replaced.

    Args:
        out: new, empty, or a training's folder.
        record: complete but for `files`.
        weights: float tensors by name.
        sites: widths and intervals, None where the method chooses none.
        integers: codes, scales and biases by layer, None likewise.
        plot: SVG.

    Returns:
        the record with the hashes of the files.

    Raises:
        BadInputError: `out` holds anything else; it stays as it is.
        StoreError: the disk is full or does not let us write; nothing is left behind.
    """
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        label = f".{out.name}.mixport"
        atomic.sweep(out.parent, label=label)
        with atomic.temporary_folder(out.parent, label=label) as folder:
            save_file(_plain(weights), folder / WEIGHTS_FILE)
            if sites is not None:
                (folder / SITES_FILE).write_text(sites.text(), encoding="utf-8")
            if integers is not None:
                save_file(_plain(integers), folder / INTEGERS_FILE)
            (folder / PLOT_FILE).write_text(plot, encoding="utf-8")
            files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
            whole = record.model_copy(update={"files": files})
            (folder / RECORD_FILE).write_text(whole.text(), encoding="utf-8")
            atomic.sync_tree(folder)
            check_out(out)
            atomic.put(folder, out)
    except OSError as error:
        raise StoreError(
            f"folder {out} cannot be written: {error.strerror or error}",
            hint="free space on that disk, or choose another folder with --out FOLDER",
        ) from error
    return whole


def check_out(out: Path) -> None:
    """Raise BadInputError unless `out` is free, an empty folder, or a training's folder and nothing else."""
    hint = "choose another folder with --out FOLDER"
    if is_free(out, hint=hint):
        return
    try:
        read_training(out)
    except MixportError as error:
        raise BadInputError(
            f"--out {out} exists and is not the folder of a training, so it stays as it is", hint=hint
        ) from error
    foreign = sorted(path.name for path in out.iterdir() if path.name not in TRAINED_FILES)
    if foreign:
        raise BadInputError(
            f"--out {out} holds other files too ({', '.join(foreign[:3])}), so it stays as it is", hint=hint
        )


def sites_of(assignment: Assignment, prepared: Prepared, *, source: str) -> SitesFile:
    """Widths and intervals of an assignment, by the names of a width table; carriers by the names of their
    sites.
    """
    free = prepared.plan.free_tensors
    sites: dict[str, SiteChoice] = {}
    carriers: dict[str, SiteChoice] = {}
    for site in prepared.plan.sites:
        choice = _choice(site.bits, assignment.params[site.name])
        tensor = site.base or site.name
        if site.role == "compute" and tensor in free:
            sites[tensor] = choice
        else:
            carriers[site.name] = choice
            if tensor in free and site.base is None:
                # Layers read the carrier's own codes: it has their width, and no other scale.
                sites.setdefault(tensor, SiteChoice(bits=site.bits))
    layers = {
        width.name: LayerChoice(bits=width.bits, scale=tuple(assignment.integers[node].scales.tolist()))
        for node, width in prepared.widths.items()
    }
    return SitesFile(layers=layers, sites=sites, carriers=carriers, source=source)


def integers_of(assignment: Assignment, prepared: Prepared) -> dict[str, Tensor]:
    """`codes/NAME` int8, `scales/NAME` float32 and `bias/NAME` float32 of each layer; no bias, no entry."""
    found: dict[str, Tensor] = {}
    for node, width in prepared.widths.items():
        integers = assignment.integers[node]
        found[f"codes/{width.name}"] = torch.as_tensor(integers.codes)
        found[f"scales/{width.name}"] = torch.as_tensor(integers.scales)
        if integers.bias is not None:
            found[f"bias/{width.name}"] = torch.as_tensor(integers.bias)
    return found


def _choice(bits: int, params: QuantParams) -> SiteChoice:
    return SiteChoice(
        bits=bits,
        scale=params.scale,
        zero_point=params.zero_point,
        lowest=params.qmin,
        highest=params.qmax,
    )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
