"""What `--trained` and `--sites` bring into a build, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mixport.pipeline.options.build_options import BuildOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.trained import (
    RECORD_FILE,
    SITES_FILE,
    WEIGHTS_FILE,
    SitesFile,
    TrainingRecord,
    read_sites,
    read_training,
)
from mixport.records.choices.width_table import WidthTable
from mixport.records.errors import BadInputError, BadOptionError, TargetError
from mixport.records.fingerprint import sha256_file
from mixport.records.targets import Target

if TYPE_CHECKING:
    from mixport.model.float_model import FloatModel

_CHOSEN = ("scheme", "edge_bits", "edge_convention", "sites", "reconstruction", "mlp_reconstruction")
"""Options that a training of widths has decided already."""


@dataclass(frozen=True, kw_only=True)
class TrainedInput:
    """A training's folder.

    Attributes:
        folder: of it.
        record: its training.json.
        sha256: of training.json, which has the hashes of all other files.
        integers: they are exported as they are; False takes the widths alone, or plain weights.
    """

    folder: Path
    record: TrainingRecord
    sha256: str
    integers: bool

    @property
    def has_sites(self) -> bool:
        """Widths were chosen."""
        return self.record.scheme is not None

    @property
    def weights(self) -> Path | None:
        """State dict that takes the place of the model's; None where the training has none."""
        return None if self.has_sites else self.folder / WEIGHTS_FILE

    def scheme(self) -> Scheme | None:
        """The scheme that the graph was prepared for; None where the training chose no widths."""
        return None if self.record.scheme is None else Scheme(**self.record.scheme)

    def sites(self) -> SitesFile | None:
        """Its widths, None likewise."""
        return read_sites(self.folder / SITES_FILE) if self.has_sites else None

    def check_model(self, model: FloatModel) -> None:
        """Raise BadInputError where widths and integers are those of other weights."""
        if self.has_sites and model.sha256 != self.record.model["sha256"]:
            raise BadInputError(
                f"--trained {self.folder} was trained from {self.record.model['source']} with weights "
                f"{self.record.model['sha256'][:12]}, got {model.source} with {model.sha256[:12]}",
                hint=f"the same MODEL and --weights as in: {self.record.command}",
            )

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Raise TargetError where integers were chosen for another target."""
        wanted = self.record.target
        for target in targets if self.integers and wanted is not None else ():
            if wanted is not None and target.sha256 != wanted["sha256"]:
                raise TargetError(
                    f"--trained {self.folder} has integers for target {wanted['name']} "
                    f"({wanted['sha256'][:12]}), got {target.name} ({target.sha256[:12]})",
                    hint="train for this target, or take the widths alone with --iters N",
                )


def open_trained(options: BuildOptions) -> TrainedInput | None:
    """What `--trained` names, None without it; every file is held against its hash.

    Raises:
        BadInputError: no folder of a training, or one whose files have changed.
        BadOptionError: an option that the training has decided already.
    """
    if options.trained is None:
        return None
    folder = options.trained.expanduser()
    if not folder.is_dir():
        raise BadInputError(
            f"--trained {folder} is not a folder", hint="the folder that mixport train --out wrote"
        )
    record = read_training(folder)
    for name, wanted in record.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or sha256_file(path) != wanted:
            raise BadInputError(
                f"{path} is missing or not the file that training.json names",
                hint=f"train again: {record.command}",
            )
    if record.scheme is None and options.weights is not None:
        raise BadOptionError(
            f"--weights has no effect with --trained {folder}, which has the weights of {record.method}",
            hint="leave one of them out",
        )
    for name in _CHOSEN if record.scheme is not None else ():
        reconstructs = name in ("reconstruction", "mlp_reconstruction") and options.iters
        if options.given(name) and not reconstructs:
            raise BadOptionError(
                f"--{name.replace('_', '-')} has no effect with --trained {folder}, whose training chose it",
                hint="leave one of them out",
            )
    return TrainedInput(
        folder=folder,
        record=record,
        sha256=sha256_file(folder / RECORD_FILE),
        integers=record.scheme is not None and not options.iters,
    )


def open_table(options: BuildOptions, trained: TrainedInput | None) -> WidthTable | None:
    """Widths of single layers and sites, from a training or, with scales, from `--sites`. Raises
    BadInputError.
    """
    found = trained.sites() if trained is not None else None
    if found is not None:
        return found.widths()
    return None if options.sites is None else read_sites(options.sites).table()
