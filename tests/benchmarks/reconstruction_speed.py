"""Where reconstruction's time goes: seconds per 1,000 steps of each unit, by number of CPU threads.

    python -m tests.benchmarks.reconstruction_speed --data ../shared/data [--model ResNet-20] [--scheme w2a4]
    [--threads 1 --threads 2]

Each unit does `--steps` steps; the first 20, in which memory is found and kernels are chosen, are not
counted. Numbers of threads run one after another in one process: compare ratios, on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mixport.model.float_model import FloatModel
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import DEFAULT, PRESETS, ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.progress import Advance, ignore
from mixport.records.targets import load_target
from tests.benchmarks.reconstruction import SUBJECTS, Case, prepare


class UnitTimes:
    """A progress that notes when each unit says how far it is."""

    def __init__(self) -> None:
        self.said: dict[str, list[tuple[float, int]]] = {}

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Generator[Advance]:
        """Note what reconstruction says, nothing else."""

        def advance(count: int, detail: str = "") -> None:
            name, _, loss = detail.rpartition(", loss ")
            if loss and count:
                self.said.setdefault(name, []).append((time.perf_counter(), count))

        yield advance if description == "reconstruct" else ignore

    def per_thousand(self) -> dict[str, float]:
        """Seconds per 1,000 steps of each unit, between what it said first and last."""
        return {
            name: 1000.0 * (said[-1][0] - said[0][0]) / sum(count for _, count in said[1:])
            for name, said in self.said.items()
            if len(said) > 1
        }


def timed(
    model: FloatModel, calibration: CalibrationSet, *, scheme: str, preset: str, steps: int, threads: int
) -> dict[str, float]:
    """Seconds per 1,000 steps by unit, with this many threads."""
    torch.set_num_threads(threads)
    times = UnitTimes()
    recipe = ReconstructionOptions(preset=PRESETS[preset], iters=steps)
    with TemporaryDirectory() as folder:
        quantize(
            model,
            calibration,
            load_target("ort-cpu"),
            scheme=Scheme.parse(scheme),
            reconstruction=recipe,
            workdir=Path(folder),
            progress=times,
        )
    return times.per_thousand()


def main() -> None:
    """Print a table: units, seconds per 1,000 steps by number of threads, and the sum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", choices=sorted(SUBJECTS), default="ResNet-20")
    parser.add_argument("--scheme", default="w2a4")
    parser.add_argument("--reconstruction", default=DEFAULT)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100, help="a unit, at least 40")
    parser.add_argument(
        "--threads", type=int, action="append", help="default: 1 and what torch takes by itself"
    )
    given = parser.parse_args()
    counts = given.threads or sorted({1, torch.get_num_threads()})
    case = Case(subject=given.model, scheme=given.scheme, iters=given.steps, images=given.images)
    with TemporaryDirectory() as work:
        model, calibration = prepare(case, 0, data=given.data, work=Path(work))
        columns = [
            timed(
                model,
                calibration,
                scheme=given.scheme,
                preset=given.reconstruction,
                steps=given.steps,
                threads=count,
            )
            for count in counts
        ]
    print(f"{given.model} {given.scheme}, {given.reconstruction}: seconds per 1,000 steps\n")
    print("| unit |", " | ".join(f"{count} thread{'s' if count > 1 else ''}" for count in counts), "|")
    print("|---|" + "---|" * len(counts))
    for name in columns[0]:
        print(f"| {name} |", " | ".join(f"{column[name]:.1f}" for column in columns), "|")
    print("| all |", " | ".join(f"{sum(column.values()):.1f}" for column in columns), "|")


if __name__ == "__main__":
    main()
