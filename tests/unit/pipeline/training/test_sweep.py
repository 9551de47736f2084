"""Which builds a sweep makes, and what it keeps of them; the builds themselves are replaced."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.train_options import SweepOptions
from mixport.pipeline.training import sweep
from mixport.pipeline.training.sweep import SweepRow, run_sweep
from mixport.records.errors import BadInputError, BadOptionError, StoreError
from tests.unit.pipeline.options.test_trained_input import NIPQ, write


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[BuildOptions]:
    """Options of every build that was asked for; w3a4 fails a gate."""
    asked: list[BuildOptions] = []

    def build_all(options: BuildOptions, **_: Any) -> tuple[Any]:
        asked.append(options)
        assert options.out is not None
        options.out.mkdir(parents=True)
        metrics = {
            "size_bytes": 100 + len(asked),
            "top1_quantized": 50.0 if options.eval else None,
            "top1_float": 60.0 if options.eval else None,
            "agreement": 0.75,
            "sqnr_db": 20.0,
        }
        manifest = SimpleNamespace(
            metrics=SimpleNamespace(model_dump=lambda: metrics),
            validation=SimpleNamespace(
                verdict="exact", runtimes=[SimpleNamespace(mismatches=2), SimpleNamespace(mismatches=1)]
            ),
        )
        failures = ("gate x is not met",) if options.scheme == "w3a4" else ()
        return (
            SimpleNamespace(bundle=SimpleNamespace(path=options.out, manifest=manifest), failures=failures),
        )

    monkeypatch.setattr(sweep, "build_all", build_all)
    return asked


def swept(tmp_path: Path, **values: Any) -> sweep.Sweep:
    return run_sweep(SweepOptions.of({"model": "tests.models:tiny", "out": tmp_path / "out", **values}))


def test_every_scheme_with_every_number_of_steps_and_8_bits_once(
    builds: list[BuildOptions], tmp_path: Path
) -> None:
    rows: list[SweepRow] = []
    made = run_sweep(
        SweepOptions.of(
            {"model": "a:b", "out": tmp_path / "out", "schemes": "w8a8,w4a4,w2a4,w4a4", "iters": "0,500"}
        ),
        on_row=rows.append,
    )
    points = [("w8a8", 0), ("w4a4", 0), ("w4a4", 500), ("w2a4", 0), ("w2a4", 500)]
    assert [(one.scheme, one.iters) for one in builds] == points
    assert [(one.scheme, one.iters) for one in made.rows] == points
    assert rows == list(made.rows)
    folders = [one.out.name for one in builds if one.out is not None]
    assert folders == ["w8a8", "w4a4", "w4a4-500", "w2a4", "w2a4-500"]


def test_8_bits_with_narrow_edges_learn(builds: list[BuildOptions], tmp_path: Path) -> None:
    swept(tmp_path, schemes="w8a8", edge_bits=4, iters="0,500")
    assert [(one.scheme, one.iters, one.edge_bits) for one in builds] == [("w8a8", 0, 4), ("w8a8", 500, 4)]


def test_table_and_plot_are_written(builds: list[BuildOptions], tmp_path: Path) -> None:
    made = swept(tmp_path, schemes="w8a8,w3a4")
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert document == made.document()
    assert document["rows"][1] == {
        "scheme": "w3a4",
        "iters": 0,
        "bundle": str(tmp_path / "out" / "w3a4"),
        "size_bytes": 102,
        "top1": None,
        "top1_float": None,
        "agreement": 0.75,
        "sqnr_db": 20.0,
        "verdict": "exact",
        "mismatches": 3,
    }
    assert document["failures"] == ["w3a4: gate x is not met"]
    plot = (tmp_path / "out" / "sweep.svg").read_text()
    assert "agreement with the float model" in plot and "w3a4" in plot


def test_with_labelled_images_the_plot_is_of_accuracy(builds: list[BuildOptions], tmp_path: Path) -> None:
    made = swept(tmp_path, schemes="w8a8", eval=Path("d.npz"))
    assert made.rows[0].top1 == 50.0 and builds[0].eval == Path("d.npz")
    assert "top-1" in (tmp_path / "out" / "sweep.svg").read_text()


def test_every_build_gets_the_options_of_the_sweep(builds: list[BuildOptions], tmp_path: Path) -> None:
    given = {
        "calib": "noise",
        "images": 9,
        "seed": 5,
        "target": "onnx-int8",
        "cache": tmp_path / "cache",
        "edge_convention": "qdrop",
        "weights": Path("w.safetensors"),
        "input_size": "48",
    }
    swept(tmp_path, schemes="w8a8", **given)
    (one,) = builds
    assert (one.calib, one.images, one.seed, one.target) == ("noise", 9, 5, ("onnx-int8",))
    assert (one.cache, one.edge_convention) == (tmp_path / "cache", "qdrop")
    assert (one.weights, one.input_size) == (Path("w.safetensors"), (48, 48))
    assert one.trained is None


def test_the_folder_of_a_training_stands_for_its_model(builds: list[BuildOptions], tmp_path: Path) -> None:
    folder = write(tmp_path / "plain", model_options={"input_size": [48, 48]})
    made = swept(tmp_path, model=str(folder), schemes="w8a8")
    (one,) = builds
    assert (one.model, one.trained, one.input_size) == ("tests:small", folder, (48, 48))
    assert made.model == str(folder)
    builds.clear()
    run_sweep(
        SweepOptions.of(
            {"model": str(folder), "schemes": "w8a8", "input_size": "32", "out": tmp_path / "two"}
        )
    )
    assert builds[0].input_size == (32, 32), "what is typed wins"


def test_trained_weights_by_option(builds: list[BuildOptions], tmp_path: Path) -> None:
    folder = write(tmp_path / "plain")
    swept(tmp_path, trained=folder, schemes="w8a8")
    assert (builds[0].model, builds[0].trained) == ("tests.models:tiny", folder)


def test_a_training_cannot_be_given_twice(builds: list[BuildOptions], tmp_path: Path) -> None:
    folder = write(tmp_path / "plain")
    with pytest.raises(BadOptionError, match=r"--trained .* has no effect with MODEL"):
        swept(tmp_path, model=str(folder), trained=folder)
    assert builds == []


def test_what_cannot_be_swept_is_refused_before_any_build(builds: list[BuildOptions], tmp_path: Path) -> None:
    nipq = write(tmp_path / "nipq", **NIPQ)
    with pytest.raises(BadOptionError, match=r"trained for one set of widths \(w3a4\)") as caught:
        swept(tmp_path, model=str(nipq))
    assert caught.value.hint == f"mixport build tests:small --trained {nipq}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match=r"empty, which holds no training\.json"):
        swept(tmp_path, model=str(tmp_path / "empty"))
    with pytest.raises(BadOptionError, match="--scheme is 'w99'"):
        swept(tmp_path, schemes="w8a8,w99")
    assert builds == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [("builtin:cifar10-resnet20", "cifar10-resnet20"), ("a.b:make", "make"), ("timm:x/y", "y")],
)
def test_without_out_it_lies_in_dist_by_the_name_of_the_model(
    model: str, name: str, builds: list[BuildOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run_sweep(SweepOptions.of({"model": model, "schemes": "w8a8"}))
    assert made.path == Path("dist") / f"{name}-sweep"


def test_a_table_that_cannot_be_written_is_no_crash(
    builds: list[BuildOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        swept(tmp_path, schemes="w8a8")
