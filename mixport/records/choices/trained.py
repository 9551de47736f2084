"""What a training leaves for the exporter: widths and intervals of sites, and how they came about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.errors import BadInputError

Kind = TypeVar("Kind", bound=BaseModel)

SITES_FILE, WEIGHTS_FILE, INTEGERS_FILE = "sites.json", "weights.safetensors", "integers.safetensors"
RECORD_FILE, PLOT_FILE = "training.json", "training.svg"
TRAINED_FILES = (SITES_FILE, WEIGHTS_FILE, INTEGERS_FILE, RECORD_FILE, PLOT_FILE)
"""Files of a training's folder."""
_MAX_BYTES = 64 << 20

Method = Literal["nipq", "symreg", "satnl", "symreg+satnl", "plain"]
METHODS: tuple[Method, ...] = ("nipq", "symreg", "satnl", "symreg+satnl", "plain")

_Bits = Annotated[int, Field(ge=2, le=16)]
_Code = Annotated[int, Field(ge=-32768, le=32767)]
_Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _with(*names: str) -> AfterValidator:
    """These keys are there."""

    def check(value: dict[str, str]) -> dict[str, str]:
        missing = [name for name in names if name not in value]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        return value

    return AfterValidator(check)


def _makes_a_scheme(value: dict[str, Any]) -> dict[str, Any]:
    try:
        Scheme(**value)
    except TypeError as error:
        raise ValueError(f"no fields of a scheme: {error}") from error
    return value


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerChoice(_Record):
    """What is chosen of one layer.

    Attributes:
        bits: of its weights.
        scale: one for each output channel; None leaves them to the algorithm.
    """

    bits: _Bits
    scale: tuple[_Scale, ...] | None = None


class SiteChoice(_Record):
    """What is chosen of the codes that layers and products read of one tensor.

    Attributes:
        bits: of the codes.
        scale: of a step; None leaves it to calibration.
        zero_point: of the codes, where there is a scale.
        lowest: code that the quantiser gives; None is 0, or the zero point behind a Relu.
        highest: likewise; None is what the width holds.
    """

    bits: _Bits
    scale: _Scale | None = None
    zero_point: _Code | None = None
    lowest: _Code | None = None
    highest: _Code | None = None


class SitesFile(_Record):
    """`sites.json`: choices by name; whatever is not named stays with the scheme.

    Attributes:
        schema_version: of this form.
        layers: by name of the layer in the manifest.
        sites: what layers and products read, by name of the tensor: the name of its first site in the
            manifest.
        carriers: every other site by its own name; of a training, whose scales are tied to one another.
        source: who chose, for people.
    """

    schema_version: Literal[1] = 1
    layers: dict[str, LayerChoice] = Field(default_factory=dict[str, LayerChoice])
    sites: dict[str, SiteChoice] = Field(default_factory=dict[str, SiteChoice])
    carriers: dict[str, SiteChoice] = Field(default_factory=dict[str, SiteChoice])
    source: str = ""

    def widths(self) -> WidthTable:
        """The widths alone."""
        return WidthTable(
            weights={name: choice.bits for name, choice in self.layers.items()},
            activations={name: choice.bits for name, choice in self.sites.items()},
        )

    def table(self) -> WidthTable:
        """Widths, and scales where there are some; carriers are left out, since theirs are tied."""
        return replace(
            self.widths(),
            weight_scales={
                name: choice.scale for name, choice in self.layers.items() if choice.scale is not None
            },
            steps={
                name: (choice.scale, choice.zero_point or 0)
                for name, choice in self.sites.items()
                if choice.scale is not None
            },
        )

    def text(self) -> str:
        """The file."""
        return json.dumps(self.model_dump(exclude_none=True), indent=1) + "\n"


class EpochRecord(_Record):
    """One epoch.

    Attributes:
        phase: of the method.
        epoch: from 0, in the whole training.
        loss: mean over its batches.
        held_out: accuracy on images that are not trained on, or agreement with the teacher where there are
            no labels; from 0 to 1.
        figures: of the method: average bits and others.
    """

    phase: str
    epoch: int
    loss: float
    held_out: float
    figures: dict[str, float] = Field(default_factory=dict[str, float])


class TrainingData(_Record):
    """What was trained on.

    Attributes:
        method: labelled, or how the images were made.
        source: where they are from.
        sha256: of images and labels.
        images: trained on.
        held_out: only looked at.
        labels: whether they were used.
    """

    method: str
    source: str
    sha256: str
    images: int
    held_out: int
    labels: bool


class TrainingRecord(_Record):
    """`training.json`: the record of a training.

    Attributes:
        schema_version: of this form.
        method: of training.
        model: name, source and SHA-256 of the float model.
        model_options: options that it was opened with, but for its weights.
        teacher: source of the teacher, None without one.
        data: what was trained on.
        scheme: widths that the graph was prepared for; None where the method trains plain weights.
        target: name and SHA-256, None likewise.
        budget: that was asked for, None likewise.
        settings: every option that decides the result.
        curve: one entry an epoch.
        decisions: what was held, declined or changed.
        environment: versions.
        command: that repeats the training.
        files: SHA-256 by name.
    """

    schema_version: Literal[1] = 1
    method: Method
    model: Annotated[dict[str, str], _with("name", "source", "sha256")]
    model_options: dict[str, Any] = Field(default_factory=dict[str, Any])
    teacher: str | None
    data: TrainingData
    scheme: Annotated[dict[str, Any], AfterValidator(_makes_a_scheme)] | None = None
    target: Annotated[dict[str, str], _with("name", "sha256")] | None = None
    budget: str | None = None
    settings: dict[str, Any]
    curve: tuple[EpochRecord, ...]
    decisions: tuple[dict[str, str], ...] = ()
    environment: dict[str, str]
    command: str
    files: dict[str, str]

    def text(self) -> str:
        """The file."""
        return json.dumps(self.model_dump(), indent=1) + "\n"


def read_sites(path: Path) -> SitesFile:
    """Read `sites.json`, or a file of the same form made by hand.

    Raises:
        BadInputError: missing, not JSON, too large, or a field that is unknown or out of range.
    """
    return _read(
        path, SitesFile, hint='a file such as {"schema_version": 1, "layers": {"conv1": {"bits": 4}}}'
    )


def read_training(folder: Path) -> TrainingRecord:
    """Read `training.json` of a training's folder. Raises BadInputError."""
    return _read(
        folder / RECORD_FILE,
        TrainingRecord,
        hint="--trained takes the folder that mixport train --out wrote",
    )


def _read(path: Path, kind: type[Kind], *, hint: str) -> Kind:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInputError(f"{path} is larger than {_MAX_BYTES} bytes", hint=hint)
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        got = f" (got {first['input']!r:.80})" if first["type"] != "json_invalid" else ""
        raise BadInputError(f"{path}: {where}: {first['msg']}{got}", hint=hint) from error
