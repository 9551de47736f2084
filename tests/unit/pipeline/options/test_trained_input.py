"""What a training's folder and a file of widths bring into a build."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixport.pipeline.build_plan import BuildPlan, resolve
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.trained_input import TrainedInput, open_table, open_trained
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.trained import (
    EpochRecord,
    LayerChoice,
    SitesFile,
    TrainingData,
    TrainingRecord,
)
from mixport.records.errors import BadInputError, BadOptionError, TargetError
from mixport.records.fingerprint import sha256_file
from mixport.records.targets import load_target
from mixport.train.folder import write_folder
from tests.reconstruction import float_model, stack

SITES = SitesFile(layers={"second": LayerChoice(bits=3)})
SCHEME = Scheme(weight_bits=4, activation_bits=4, spelling="nipq:w3a4")
NIPQ: dict[str, Any] = {
    "method": "nipq",
    "scheme": asdict(SCHEME),
    "budget": "w3a4",
    "target": {"name": "ort-cpu", "sha256": load_target("ort-cpu").sha256},
}


def write(out: Path, **changes: Any) -> Path:
    """A folder of NIPQ or of plain weights."""
    record = TrainingRecord(
        method="plain",
        model={"name": "small", "source": "tests:small", "sha256": "c" * 64},
        teacher=None,
        data=TrainingData(method="labelled", source="x", sha256="cd", images=3, held_out=1, labels=True),
        settings={},
        curve=(EpochRecord(phase="a", epoch=0, loss=0.5, held_out=0.5),),
        environment={},
        command="mixport train small",
        files={},
    ).model_copy(update=changes)
    chosen = record.scheme is not None
    write_folder(
        out,
        record,
        weights={"a": torch.ones(2)},
        sites=SITES if chosen else None,
        integers={"codes/second": torch.ones(2, dtype=torch.int8)} if chosen else None,
        plot="<svg/>",
    )
    return out


def options(folder: Path | None = None, **values: Any) -> BuildOptions:
    given = {} if folder is None else {"trained": folder}
    return BuildOptions.of({"model": "tests.models:tiny", **given, **values})


def opened(folder: Path, **values: Any) -> TrainedInput:
    found = open_trained(options(folder, **values))
    assert found is not None
    return found


def plan(folder: Path, **values: Any) -> BuildPlan:
    return resolve(options(folder, **values))


def test_without_a_training_there_is_nothing() -> None:
    assert open_trained(options()) is None
    assert open_table(options(), None) is None
    assert resolve(options()).integers is None


def test_a_training_of_widths_gives_integers_scheme_and_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "nipq", **NIPQ)
    found = opened(folder)
    assert found.integers and found.has_sites and found.weights is None
    assert found.scheme() == SCHEME and found.sites() == SITES
    assert found.sha256 == sha256_file(folder / "training.json")
    table = open_table(options(folder), found)
    assert table is not None and table.weights == {"second": 3}
    made = plan(folder)
    assert made.scheme == SCHEME and made.reconstruction is None
    assert made.integers is not None and made.integers.folder == folder
    assert made.model.weights is None


def test_steps_take_its_widths_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "nipq", **NIPQ)
    made = plan(folder, iters=7, reconstruction="mixport")
    assert made.trained is not None and made.integers is None
    assert made.scheme == SCHEME
    assert made.reconstruction is not None and made.reconstruction.iters == 7
    assert made.table is not None and made.table.weights == {"second": 3}
    assert plan(folder, iters=0).integers is not None, "no steps: nothing is learned anew"


def test_a_training_of_weights_gives_weights_and_leaves_the_rest(tmp_path: Path) -> None:
    folder = write(tmp_path / "plain")
    found = opened(folder)
    assert not found.integers and not found.has_sites
    assert found.weights == folder / "weights.safetensors"
    assert found.scheme() is None and found.sites() is None and open_table(options(folder), found) is None
    made = plan(folder, scheme="w2a4", iters=5)
    assert made.model.weights == folder / "weights.safetensors"
    assert made.scheme == Scheme.parse("w2a4")
    assert made.reconstruction is not None and made.reconstruction.iters == 5


def test_weights_of_a_training_take_the_place_of_random_ones(tmp_path: Path) -> None:
    made = plan(write(tmp_path / "plain"), random_weights=True)
    assert not made.model.random_weights and made.model.weights is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "w4a8"}, "--scheme has no effect with --trained"),
        ({"edge_bits": 8}, "--edge-bits has no effect"),
        ({"edge_convention": "brecq"}, "--edge-convention has no effect"),
        ({"sites": Path("x.json")}, "--sites has no effect"),
        ({"reconstruction": "mixport"}, "--reconstruction has no effect"),
        ({"mlp_reconstruction": False}, "--mlp-reconstruction has no effect"),
        ({"iters": 3, "scheme": "w4a4"}, "--scheme has no effect"),
    ],
)
def test_what_the_training_chose_is_not_chosen_again(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "nipq", **NIPQ)
    with pytest.raises(BadOptionError, match=f"{message}.*whose training chose it"):
        opened(folder, **values)


def test_weights_are_given_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "plain", method="symreg")
    with pytest.raises(BadOptionError, match=r"--weights has no effect .* the weights of symreg"):
        opened(folder, weights=Path("other.safetensors"))


@pytest.mark.parametrize(
    "name", ["sites.json", "integers.safetensors", "training.svg", "weights.safetensors"]
)
@pytest.mark.parametrize("how", ["changed", "lost"])
def test_every_file_is_held_against_its_hash(name: str, how: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "nipq", **NIPQ)
    if how == "lost":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(
        BadInputError, match=f"{name} is missing or not the file that training.json names"
    ) as got:
        opened(folder)
    assert got.value.hint == "train again: mixport train small"


def test_a_record_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = write(tmp_path / "plain")
    path = folder / "training.json"
    record = TrainingRecord.model_validate_json(path.read_text())
    files = {**record.files, "../secret": sha256_file(tmp_path / "secret")}
    path.write_text(record.model_copy(update={"files": files}).text())
    with pytest.raises(BadInputError, match="secret is missing or not the file"):
        opened(folder)


def test_other_weights_of_the_model_are_refused_where_integers_belong_to_them(tmp_path: Path) -> None:
    model = float_model(stack())
    other = replace(model, sha256="d" * 64, source="tests:other")
    found = opened(write(tmp_path / "nipq", **NIPQ))
    found.check_model(model)
    with pytest.raises(
        BadInputError, match=r"from tests:small with weights c{12}, got tests:other with d{12}"
    ):
        found.check_model(other)
    opened(write(tmp_path / "plain")).check_model(other)


def test_another_target_is_refused_for_integers_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "nipq", **NIPQ)
    with pytest.raises(TargetError, match=r"has integers for target ort-cpu \(.*\), got onnx-int8 \("):
        opened(folder).check_targets([load_target("ort-cpu"), load_target("onnx-int8")])
    opened(folder).check_targets([load_target("ort-cpu")])
    opened(folder, iters=5).check_targets([load_target("onnx-int8")])
    opened(write(tmp_path / "plain")).check_targets([load_target("onnx-int8")])
    with pytest.raises(TargetError, match="has integers for target ort-cpu"):
        plan(folder, portable=False)


def test_a_file_of_widths_is_read_where_there_is_no_training(tmp_path: Path) -> None:
    path = tmp_path / "widths.json"
    path.write_text('{"layers": {"head": {"bits": 4}}}')
    table = open_table(options(sites=path), None)
    assert table is not None and table.weights == {"head": 4} and table.activations == {}
    with pytest.raises(BadInputError, match=r"absent\.json cannot be read"):
        open_table(options(sites=tmp_path / "absent.json"), None)
