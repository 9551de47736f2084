"""The timm architectures that mixport promises to build, and what a build of one shows.

python -m tests.e2e.architectures [--out FILE.json] [NAME ...]    builds them all and prints the table of
docs/architectures.md
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mixport.pipeline.build_bundle import build
from mixport.records.errors import MixportError, ValidationFailedError
from mixport.release.bundle import ReleaseBundle, read_bundle

SCHEMES = ("w8a8", "w4a8")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A timm architecture, the side of its square input in pixels, and the family it stands for."""

    name: str
    family: str
    size: int = 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one build gave.

    Attributes:
        name: architecture.
        scheme: wWaA.
        verdict: exact, mismatch, or the class of the error.
        tensors: quantised tensors compared.
        islands: float operators outside the claim, by operator type.
        size_ratio: file against float parameters.
        seconds: wall time.
        message: of the error.
    """

    name: str
    scheme: str
    verdict: str
    tensors: int
    islands: dict[str, int]
    size_ratio: float
    seconds: float
    message: str = ""


#: Quick ones of four kinds: `pytest -m sweep` builds these, `pytest -m architectures` the others.
QUICK = ("regnetx_002", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224")

ARCHITECTURES = (
    Architecture(name="resnet18", family="ResNet"),
    Architecture(name="resnet50", family="ResNet"),
    Architecture(name="seresnet18", family="SE-ResNet"),
    Architecture(name="skresnet18", family="SK-ResNet"),
    Architecture(name="regnetx_002", family="RegNetX"),
    Architecture(name="regnety_002", family="RegNetY"),
    Architecture(name="mobilenetv2_100", family="MobileNetV2"),
    Architecture(name="mobilenetv3_small_100", family="MobileNetV3"),
    Architecture(name="mobilenetv3_large_100", family="MobileNetV3"),
    Architecture(name="mobilenetv4_conv_small", family="MobileNetV4"),
    Architecture(name="efficientnet_b0", family="EfficientNet"),
    Architecture(name="efficientnet_lite0", family="EfficientNet-Lite"),
    Architecture(name="mnasnet_100", family="MNASNet"),
    Architecture(name="fbnetc_100", family="FBNet"),
    Architecture(name="tinynet_e", family="TinyNet"),
    Architecture(name="ghostnet_100", family="GhostNet"),
    Architecture(name="rexnet_100", family="ReXNet"),
    Architecture(name="vgg11", family="VGG"),
    Architecture(name="densenet121", family="DenseNet"),
    Architecture(name="repvgg_a0", family="RepVGG"),
    Architecture(name="mobileone_s0", family="MobileOne"),
    Architecture(name="dla34", family="DLA"),
    Architecture(name="hrnet_w18_small", family="HRNet"),
    Architecture(name="inception_v3", family="Inception", size=128),
    Architecture(name="xception41", family="Xception", size=128),
    Architecture(name="darknet53", family="DarkNet"),
    Architecture(name="cspresnet50", family="CSPNet"),
    Architecture(name="selecsls42", family="SelecSLS"),
    Architecture(name="convnext_atto", family="ConvNeXt"),
    Architecture(name="convmixer_768_32", family="ConvMixer"),
    Architecture(name="poolformer_s12", family="PoolFormer"),
    Architecture(name="vit_tiny_patch16_224", family="ViT"),
    Architecture(name="deit_tiny_patch16_224", family="DeiT"),
    Architecture(name="swin_tiny_patch4_window7_224", family="Swin", size=224),
    Architecture(name="levit_128s", family="LeViT", size=224),
    Architecture(name="mobilevit_xxs", family="MobileViT"),
    Architecture(name="efficientformer_l1", family="EfficientFormer", size=224),
    Architecture(name="edgenext_xx_small", family="EdgeNeXt"),
    Architecture(name="fastvit_t8", family="FastViT"),
    Architecture(name="mixer_s32_224", family="MLP-Mixer", size=224),
    Architecture(name="resmlp_12_224", family="ResMLP", size=224),
    Architecture(name="starnet_s1", family="StarNet"),
)


def attempt(architecture: Architecture, scheme: str, folder: Path) -> Outcome:
    """Build with seeded random weights and noise images; errors that a user may meet become the verdict."""
    start = time.perf_counter()
    out = folder / f"{architecture.name}-{scheme}"
    try:
        bundle: ReleaseBundle = build(
            f"timm:{architecture.name}",
            random_weights=True,
            calib="noise",
            images=8,
            iters=0,
            validation_images=2,
            scheme=scheme,
            input_size=(architecture.size, architecture.size),
            out=out,
            cache=folder / "cache",
        )
    except ValidationFailedError:
        bundle = read_bundle(out)
    except MixportError as error:
        return Outcome(
            name=architecture.name,
            scheme=scheme,
            verdict=type(error).__name__,
            tensors=0,
            islands={},
            size_ratio=0.0,
            seconds=time.perf_counter() - start,
            message=str(error),
        )
    validation = bundle.manifest.validation
    return Outcome(
        name=architecture.name,
        scheme=scheme,
        verdict=validation.verdict,
        tensors=max(runtime.tensors for runtime in validation.runtimes),
        islands=dict(Counter(island_operator(name) for name in validation.float_islands)),
        size_ratio=bundle.manifest.metrics.size_ratio,
        seconds=time.perf_counter() - start,
    )


def island_operator(name: str) -> str:
    """Operator type of an island as the manifest lists it: `name (Type)` or the bare name."""
    return name.rpartition("(")[2].rstrip(")") if "(" in name else name


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: one row an architecture."""
    by_name: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.name, {})[outcome.scheme] = outcome
    lines = [
        "| architecture | family | input | w8a8 | w4a8 | tensors | file, w4a8 | float islands |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for architecture in ARCHITECTURES:
        rows = by_name.get(architecture.name)
        if rows is None:
            continue
        last = rows.get("w4a8") or next(iter(rows.values()))
        islands = ", ".join(f"{count} {kind}" for kind, count in sorted(last.islands.items())) or "none"
        verdicts = " | ".join(rows[scheme].verdict if scheme in rows else "" for scheme in SCHEMES)
        cells = f"{architecture.name} | {architecture.family} | {architecture.size} | {verdicts}"
        lines.append(f"| {cells} | {last.tensors} | {last.size_ratio:.3f} | {islands} |")
    return "\n".join(lines)


def main() -> None:
    """Build every architecture at both schemes, one JSON line each as it finishes, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    for architecture in ARCHITECTURES:
        if options.names and architecture.name not in options.names:
            continue
        for scheme in SCHEMES:
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(attempt(architecture, scheme, Path(folder)))
            print(json.dumps(asdict(outcomes[-1])), flush=True)
    if options.out is not None:
        options.out.write_text(
            json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8"
        )
    print(table(outcomes))


if __name__ == "__main__":
    main()
