"""What reconstruction gives: top-1 by model, scheme, recipe, calibration images and seed, and the time it
takes.

    python -m tests.benchmarks.reconstruction --data ../shared/data --work DIR [--table NAME ...] [--seeds N]

Every file is compared with the interpreter on 32 images before its accuracy counts. Results are kept in
WORK/reconstruction.json, row by row, so that an interrupted run goes on; the tables are printed at the end,
as mean and spread (largest less smallest) over seeds. A seed decides which images are taken or drawn, batches
and masks.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mixport.lower import lower
from mixport.model.float_model import FloatModel, load_model
from mixport.model.request import PreprocessingOverrides
from mixport.model.run import float_logits
from mixport.pipeline.build_bundle import calibrate_only
from mixport.pipeline.options.build_options import BuildOptions
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import PRESETS, ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.storage.images import normalise
from mixport.validate.run.predict import predict
from mixport.validate.validate import validate
from tests.e2e.real_data import cifar_calibration, imagenet_sample
from tests.reconstruction import changed

_HALF = (0.5, 0.5, 0.5)
_FOLDS = 5
"""Of the 500 ImageNet images."""
_VIT_ARGS = {
    "img_size": "32",
    "patch_size": "4",
    "embed_dim": "128",
    "depth": "4",
    "num_heads": "4",
    "mlp_ratio": "2",
    "num_classes": "10",
}
_VIT_NORM: dict[str, Any] = {
    "input_size": (32, 32),
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A float model: how to load it, and which labelled images judge it."""

    spec: str
    weights: str = ""
    model_args: Mapping[str, str] = field(default_factory=dict[str, str])
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: str = "cifar"


SUBJECTS = {
    "ResNet-20": Subject(spec="builtin:cifar10-resnet20", weights="cifar10_resnet20.safetensors"),
    "ResNet-56": Subject(spec="builtin:cifar10-resnet56", weights="cifar10_resnet56.safetensors"),
    "builtin ViT": Subject(spec="builtin:cifar10-vit"),
    "small ViT": Subject(
        spec="timm:vit_tiny_patch16_224",
        weights="cifar10_vit_p4_d128_l4.safetensors",
        model_args=_VIT_ARGS,
        overrides=_VIT_NORM,
    ),
    "MobileNetV2": Subject(
        spec="timm:mobilenetv2_100",
        weights="imagenet_mobilenetv2_100_tf.safetensors",
        model_args={"pad_type": "same"},
        overrides={"mean": _HALF, "std": _HALF},
        images="imagenet",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: everything but the seed.

    `changes` are fields of the preset or of its only stage; `calib` is a calibration method, `real`, or
    `mixup of K` classes a prompt.
    """

    subject: str
    scheme: str
    iters: int
    preset: str = "mixport"
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    calib: str = "real"
    images: int = 1024

    def key(self, seed: int) -> str:
        """Under which a result is kept."""
        changed = ",".join(f"{name}={value}" for name, value in self.changes.items())
        return (
            f"{self.subject} {self.scheme} {self.preset}[{changed}] {self.iters} "
            f"{self.calib}:{self.images} seed {seed}"
        )


_PARTS: dict[str, dict[str, Any]] = {
    "all": {},
    "from the nearest codes": {"least_squares": False},
    "without damping": {"damping": 0.0},
    "without mirrored images": {"mirrored": False},
    "without dropping": {"input_drop": 0.0, "inner_drop": 0.0},
    "without learned biases": {"bias_lr": 0.0},
    "without learned weight scales": {"scale_lr": 0.0},
    "without learned activation steps": {"step_lr": 0.0},
    "AdaRound's sigmoid for free codes": {"rounding": "sigmoid"},
}

TABLES: dict[str, dict[str, Case]] = {
    "accuracy": {
        f"{subject} {scheme}, {iters} steps": Case(subject=subject, scheme=scheme, iters=iters)
        for subject, scheme, iters in (
            ("ResNet-20", "w4a4", 500),
            ("ResNet-20", "w4a4", 2000),
            ("ResNet-20", "w3a3", 2000),
            ("ResNet-20", "w2a4", 2000),
            ("ResNet-56", "w4a4", 500),
            ("ResNet-56", "w4a4", 2000),
            ("ResNet-56", "w2a4", 2000),
        )
    },
    "parts": {
        title: Case(subject="ResNet-20", scheme="w2a4", iters=500, changes=changes)
        for title, changes in _PARTS.items()
    },
    "images": {
        f"{calib}, {scheme}": Case(subject="ResNet-20", scheme=scheme, iters=iters, calib=calib)
        for scheme, iters in (("w4a4", 500), ("w2a4", 2000))
        for calib in ("real", "mixup of 3", "mixup of 2", "single", "genq", "noise")
    },
    "transformers": {
        f"{subject} {scheme}": Case(subject=subject, scheme=scheme, iters=iters)
        for subject in ("builtin ViT", "small ViT")
        for scheme, iters in (("w8a8", 0), ("w4a8", 500), ("w4a4", 500), ("w2a4", 2000))
    },
    "mlp": {
        f"builtin ViT w4a4, {title}": Case(
            subject="builtin ViT",
            scheme="w4a4",
            iters=500,
            images=512,
            preset=preset,
            changes={"mlp_reconstruction": with_relu},
        )
        for preset in ("mixport", "aphq")
        for title, with_relu in ((f"{preset}, GELU", False), (f"{preset}, MLPs with ReLU", True))
    },
    "published": {
        "the default recipe, 2000 steps": Case(subject="ResNet-20", scheme="w2a4", iters=2000),
        "qdrop, 20000 steps": Case(subject="ResNet-20", scheme="w2a4", iters=20000, preset="qdrop"),
    },
    "mobilenet": {
        f"MobileNetV2 {scheme}, {iters} steps": Case(
            subject="MobileNetV2", scheme=scheme, iters=iters, images=400
        )
        for scheme, iters in (("w4a8", 500), ("w4a4", 500), ("w4a4", 150))
    },
}


def prepare(case: Case, seed: int, *, data: Path, work: Path) -> tuple[FloatModel, CalibrationSet]:
    """The float model of a case, and its calibration images."""
    subject = SUBJECTS[case.subject]
    weights = data / subject.weights if subject.weights else None
    overrides = PreprocessingOverrides(**dict(subject.overrides))
    classes = data / "cifar10_classes.json" if subject.images == "cifar" else None
    model = load_model(
        subject.spec,
        weights=weights,
        model_args=dict(subject.model_args),
        classes=classes,
        overrides=overrides,
    )
    calib = (
        f"images:{_real(subject, case, seed, data=data, work=work)}" if case.calib == "real" else case.calib
    )
    method, _, together = calib.partition(" of ") if case.calib.startswith("mixup") else (calib, "", "")
    options = BuildOptions.of(
        {
            "model": subject.spec,
            "weights": weights,
            "model_arg": dict(subject.model_args),
            "classes": classes,
            "calib": method,
            **({"classes_per_prompt": int(together)} if together else {}),
            "images": case.images,
            "seed": seed,
            "cache": work / "cache",
            **dict(subject.overrides),
        }
    )
    return model, calibrate_only(options)


def run_case(case: Case, seed: int, *, data: Path, work: Path) -> dict[str, Any]:
    """Quantise, lower, validate and evaluate one case."""
    subject = SUBJECTS[case.subject]
    model, calibration = prepare(case, seed, data=data, work=work)
    recipe = None
    if case.iters:
        recipe = ReconstructionOptions(
            preset=changed(PRESETS[case.preset], **dict(case.changes)), iters=case.iters, seed=seed
        )
    target = load_target("ort-cpu")
    with TemporaryDirectory() as folder:
        fixed, written = Path(folder) / "quantized", Path(folder) / "lowered"
        fixed.mkdir()
        written.mkdir()
        start = time.perf_counter()
        quantized = quantize(
            model, calibration, target, scheme=Scheme.parse(case.scheme), reconstruction=recipe, workdir=fixed
        )
        seconds = time.perf_counter() - start
        lowered = lower(quantized, target, workdir=written)
        pixels = normalise(np.asarray(calibration.open_images()[:32]), preprocessing=model.preprocessing)
        report = validate(lowered, pixels, target, simulation=open_simulation(quantized))
        logits = {
            part: predict(
                lowered.model_path,
                images,
                preprocessing=model.preprocessing,
                target=target,
                progress=SilentProgress(),
            )
            for part, (images, _) in _judges(subject, case, seed, data=data, work=work).items()
        }
        size = lowered.model_path.stat().st_size
    accuracy = {
        part: _judged(logits[part], float_logits(model, images), labels)
        for part, (images, labels) in _judges(subject, case, seed, data=data, work=work).items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "verdict": report.verdict,
        "accuracy": accuracy,
        "seconds": round(seconds, 1),
        "bytes": size,
        "peak_gb": round(peak, 2),
    }


def _real(subject: Subject, case: Case, seed: int, *, data: Path, work: Path) -> Path:
    """Real calibration images, chosen by the seed."""
    if subject.images == "cifar":
        path = work / f"cifar-{case.images}-{seed}.npz"
        return path if path.exists() else cifar_calibration(data, path, count=case.images, seed=seed)
    path = work / f"imagenet-{case.images}-fold-{seed}.npz"
    if not path.exists():
        images = np.load(imagenet_sample(data, work / "imagenet.npz"))["images"]
        np.savez(path, images=images[_split(seed)[0][: case.images]])
    return path


def _split(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the 500 ImageNet images may be calibrated on (400), and which may not (100): seeds 0 to 4 hold
    out each image once.
    """
    order = np.random.default_rng(seed // _FOLDS).permutation(500)
    held_out = np.split(order, _FOLDS)[-1 - seed % _FOLDS]
    return order[~np.isin(order, held_out)], held_out


def _judges(
    subject: Subject, case: Case, seed: int, *, data: Path, work: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labelled images by name."""
    if subject.images == "cifar":
        with np.load(data / "cifar10_test.npz") as archive:
            return {"test": (archive["images"], archive["labels"])}
    with np.load(imagenet_sample(data, work / "imagenet.npz")) as archive:
        images, labels = archive["images"], archive["labels"]
    held_out = _split(seed)[1]
    return {"held out": (images[held_out], labels[held_out]), "all 500": (images, labels)}


def _judged(logits: np.ndarray, floats: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 of both in percent, and the mean Kullback-Leibler divergence from the float model in nats, which
    is less a matter of chance.
    """
    wanted, got = (
        torch.log_softmax(torch.as_tensor(one, dtype=torch.float64), dim=1) for one in (floats, logits)
    )
    divergence = float(torch.nn.functional.kl_div(got, wanted, reduction="batchmean", log_target=True))
    return {"top1": _top1(logits, labels), "float": _top1(floats, labels), "kl": round(divergence, 5)}


def _top1(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100.0 * float((logits.argmax(1) == labels).mean())


def table(cases: Mapping[str, Case], results: Mapping[str, Any], *, seeds: int) -> Iterator[str]:
    """Markdown rows: means and the spread of top-1 over the seeds that are there; the divergence from the
    float model in nats.
    """
    yield "| | float | top-1 | least to most | divergence | seeds | seconds | KB |"
    yield "|---|---|---|---|---|---|---|---|"
    for title, case in cases.items():
        found = [results[case.key(seed)] for seed in range(seeds) if case.key(seed) in results]
        for part in found[0]["accuracy"] if found else ():
            judged = [one["accuracy"][part] for one in found]
            top1 = [one["top1"] for one in judged]
            apart = (
                f"{statistics.mean(one['kl'] for one in judged):.4f}"
                if all("kl" in one for one in judged)
                else "-"
            )
            name = title if len(found[0]["accuracy"]) == 1 else f"{title}, {part}"
            yield (
                f"| {name} | {judged[0]['float']:.2f} | {statistics.mean(top1):.2f} | "
                f"{min(top1):.2f} to {max(top1):.2f} | {apart} "
                f"| {len(top1)} | {statistics.mean(one['seconds'] for one in found):.0f} | "
                f"{found[0]['bytes'] / 1000:.0f} |"
            )


def main() -> None:
    """Read the command line, run what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for images, the cache and the results"
    )
    parser.add_argument("--table", action="append", choices=sorted(TABLES), help="default: all")
    parser.add_argument("--only", action="append", help="rows whose title holds this text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="run nothing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / "reconstruction.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    names = given.table or sorted(TABLES)
    for seed in range(0 if given.print else given.seeds):
        for title, case in ((title, case) for name in names for title, case in TABLES[name].items()):
            if case.key(seed) in results or (given.only and not any(text in title for text in given.only)):
                continue
            made = run_case(case, seed, data=given.data, work=given.work)
            if made["verdict"] != "exact":
                raise SystemExit(f"{case.key(seed)}: validation says {made['verdict']}")
            print(case.key(seed), json.dumps(made), flush=True)
            # Another run may have added rows meanwhile.
            results = {**(json.loads(path.read_text()) if path.exists() else {}), case.key(seed): made}
            path.write_text(json.dumps(results, indent=1))
    for name in names:
        print(f"\n{name}\n", *table(TABLES[name], results, seeds=given.seeds), sep="\n")


if __name__ == "__main__":
    main()
