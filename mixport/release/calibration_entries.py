"""manifest.json: the calibration images."""

from __future__ import annotations

from mixport.release.manifest_part import Part


class GeneratorEntry(Part):
    """What drew the calibration images, with every setting as it was used; None where it is not known.

    `blackened` images are those that the safety checker objected to.
    """

    source: str
    pipeline: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    size: tuple[int, int] | None = None
    dtype: str | None = None
    device: str | None = None
    safety_checker: bool | None = None
    blackened: int | None = None
    batch: int | None = None


class PromptsEntry(Part):
    """How the prompts were made."""

    strategy: str
    classes: int
    classes_per_prompt: int
    template: str | None
    pairing: str
    label_text: str


class FiltersEntry(Part):
    """Which drawn images were kept: the shares asked for, and how many images each filter dropped."""

    keep_energy: float
    keep_statistics: float
    drawn: int
    dropped_by_energy: int
    dropped_by_statistics: int
    statistic: str = ""


class CalibrationEntry(Part):
    """The calibration images; the last three fields are those of drawn ones."""

    method: str
    recipe_key: str
    content_sha256: str
    images: int
    generator: str | None
    generator_details: GeneratorEntry | None = None
    prompts: PromptsEntry | None = None
    filters: FiltersEntry | None = None
