"""The table of latencies in docs/results.md: bundles of timm models beside torch's float export and
onnxruntime's quantize_static.

    python -m tests.benchmarks.latency --work DIR [--model NAME ...] [--scheme S ...] [--seconds S]
    [--no-wasm] [--print]

First every bundle is built that DIR lacks (random weights, the model's own size, noise images, rounded to
nearest, native only), then every model is timed that DIR/latency.json lacks: all its files in one process,
rounds interleaved, one thread, batch 1, medians. An interrupted run goes on where it stopped. What another
version of mixport's code built or timed is made anew, unless --keep is given. A machine that does nothing
else gives figures worth printing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixport.cli.commands.reproduce import read_command
from mixport.pipeline.bench import Contender, bench
from mixport.pipeline.keys import code_sha256
from mixport.pipeline.reference_files import FLOAT, NAMES, STATIC, reference_files
from mixport.records.errors import MixportError
from mixport.records.progress import SilentProgress
from mixport.release.bundle import read_bundle
from mixport.validate.runtimes import open_runtimes

MODELS = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "fastvit_t8",
    "mobilevitv2_050",
    "repvit_m0_9",
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv4_conv_small",
    "efficientnet_lite0",
)
SCHEMES = ("w8a8", "w4a8")
RESULTS = "latency.json"
#: Latency depends on the graph, not on how well it was calibrated.
_BUILD = (
    "--random-weights",
    "--calib",
    "noise",
    "--images",
    "16",
    "--iters",
    "0",
    "--validation-images",
    "4",
)

Results = dict[str, Any]


def bundle_folder(work: Path, model: str, scheme: str) -> Path:
    return work / f"{model}-{scheme}"


def build_missing(
    models: Sequence[str], schemes: Sequence[str], *, work: Path, results: Results, keep: bool
) -> None:
    """Each build in a process of its own, so that none leaves anything behind where files are timed."""
    for model in models:
        for scheme in schemes:
            folder, built = bundle_folder(work, model, scheme), results["built"]
            if (folder / "manifest.json").is_file() and (keep or built.get(folder.name) == results["code"]):
                continue
            words = [
                "build",
                f"timm:{model}",
                *_BUILD,
                "--scheme",
                scheme,
                "--cache",
                str(work / "cache"),
                "--out",
                str(folder),
            ]
            print(f"building {folder.name}", file=sys.stderr, flush=True)
            program = "import sys; from mixport.cli.program import run; sys.exit(run(sys.argv[1:]))"
            code = subprocess.run(
                [sys.executable, "-c", program, *words, "--quiet"], stdout=sys.stderr, check=False
            ).returncode
            if code:
                print(
                    f"{folder.name}: mixport build ended with exit code {code}", file=sys.stderr, flush=True
                )
                built.pop(folder.name, None)
            else:
                built[folder.name] = results["code"]
            save(work, results)


def time_model(
    model: str, schemes: Sequence[str], *, work: Path, seconds: float, runtimes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Medians in milliseconds by runtime, then by file: a scheme's bundle, float, static (on the native
    runtime only).
    """
    first, *others = [read_bundle(bundle_folder(work, model, scheme)) for scheme in schemes]
    options = read_command(first.manifest.reproduce, source=first.path)
    made = reference_files(
        NAMES,
        bundle=first,
        options=options,
        cache=work / "cache",
        progress=SilentProgress(),
        note=lambda _: None,
    )
    found: dict[str, dict[str, float]] = {}
    for name in runtimes:
        runtime = None if name == "native" else open_runtimes([name])[0]
        files = [
            Contender(name=scheme, path=one.model_path)
            for scheme, one in zip(schemes[1:], others, strict=True)
        ]
        files += [Contender(name=kind, path=made[kind]) for kind in NAMES if kind == FLOAT or runtime is None]
        rows = bench(
            first, against=files, seconds=seconds, seed=0, progress=SilentProgress(), runtime=runtime
        )
        names = [schemes[0], *(one.name for one in files)]
        found[name] = {one: row.latency.median_ms for one, row in zip(names, rows, strict=True)}
    return found


def table(
    models: Sequence[str], schemes: Sequence[str], timed: Mapping[str, Any], *, runtimes: Sequence[str]
) -> Iterator[str]:
    """Markdown; ratios below 1 mean that the bundle is faster."""
    heads = ["model", "float, ms", f"{STATIC} / float"]
    heads += [head for scheme in schemes for head in (f"{scheme} / float", f"{scheme} / {STATIC}")]
    heads += [f"{name}: {scheme} / float" for name in runtimes if name != "native" for scheme in schemes]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for model in models:
        found = timed.get(model, {}).get("ms")
        if found is None:
            yield f"| {model} |{' - |' * (len(heads) - 1)}"
            continue
        native = found["native"]
        cells = [f"{native[FLOAT]:.2f}", f"{native[STATIC] / native[FLOAT]:.2f}"]
        cells += [f"{native[scheme] / native[kind]:.2f}" for scheme in schemes for kind in (FLOAT, STATIC)]
        others = [found.get(name) for name in runtimes if name != "native"]
        cells += [
            "-" if other is None else f"{other[scheme] / other[FLOAT]:.2f}"
            for other in others
            for scheme in schemes
        ]
        yield f"| {model} | {' | '.join(cells)} |"


def load(work: Path) -> Results:
    path = work / RESULTS
    kept: Results = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"built": {}, "timed": {}}
    )
    return {**kept, "code": code_sha256()}


def save(work: Path, results: Results) -> None:
    part = work / f"{RESULTS}.part"
    part.write_text(json.dumps(results, indent=1), encoding="utf-8")
    part.replace(work / RESULTS)


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for bundles, the cache and the results"
    )
    parser.add_argument("--model", action="append", help="timm architecture; default: the table's")
    parser.add_argument("--scheme", action="append", help="default: w8a8 and w4a8")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a model's timing on one runtime")
    parser.add_argument("--no-wasm", action="store_true", help="the native runtime alone")
    parser.add_argument("--keep", action="store_true", help="also what other code built or timed")
    parser.add_argument("--again", action="store_true", help="time all of them again")
    parser.add_argument("--print", action="store_true", help="build and time nothing")
    given = parser.parse_args()
    models, schemes = given.model or MODELS, given.scheme or SCHEMES
    runtimes = ["native"] if given.no_wasm else ["native", "wasm"]
    given.work.mkdir(parents=True, exist_ok=True)
    open_runtimes(runtimes[1:])  # one that is missing is told before an hour of builds
    results = load(given.work)
    if not given.print:
        build_missing(models, schemes, work=given.work, results=results, keep=given.keep)
    for model in () if given.print else models:
        known = results["timed"].get(model, {})
        whole = all(set(schemes) <= known.get("ms", {}).get(name, {}).keys() for name in runtimes)
        if whole and not given.again and (given.keep or known["code"] == results["code"]):
            continue
        print(f"timing {model}", file=sys.stderr, flush=True)
        try:
            measured = time_model(model, schemes, work=given.work, seconds=given.seconds, runtimes=runtimes)
        except MixportError as error:
            print(f"{model}: {error}", file=sys.stderr, flush=True)
            continue
        results["timed"][model] = {"code": results["code"], "ms": measured}
        save(given.work, results)
    print(*table(models, schemes, results["timed"], runtimes=runtimes), sep="\n")


if __name__ == "__main__":
    main()
