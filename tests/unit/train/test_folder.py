"""The folder of a training: whole or not at all, and nothing foreign is replaced."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.trained import (
    EpochRecord,
    LayerChoice,
    SiteChoice,
    SitesFile,
    TrainingData,
    TrainingRecord,
    read_sites,
    read_training,
)
from mixport.records.errors import BadInputError, StoreError
from mixport.records.fingerprint import sha256_file
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.storage import atomic
from mixport.train.folder import check_out, integers_of, sites_of, write_folder
from tests.reconstruction import calibration_of, float_model, without_biases

WEIGHTS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(())}
SITES = SitesFile(layers={"a": LayerChoice(bits=4)})


def record(**changes: Any) -> TrainingRecord:
    return TrainingRecord(
        method="plain",
        model={"name": "tiny", "source": "tests.models:tiny", "sha256": "ab"},
        teacher=None,
        data=TrainingData(method="labelled", source="x", sha256="cd", images=3, held_out=1, labels=True),
        settings={},
        curve=(EpochRecord(phase="plain", epoch=0, loss=0.5, held_out=0.5),),
        environment={},
        command="mixport train x",
        files={},
    ).model_copy(update=changes)


def write(out: Path, **changes: Any) -> TrainingRecord:
    given: dict[str, Any] = {"weights": WEIGHTS, "sites": None, "integers": None, "plot": "<svg/>", **changes}
    return write_folder(out, given.pop("record", record()), **given)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_plain_weights_are_weights_record_and_plot(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    whole = write(out)
    assert {path.name for path in out.iterdir()} == {"weights.safetensors", "training.json", "training.svg"}
    assert read_training(out) == whole
    assert whole.files == {name: sha256_file(out / name) for name in ("training.svg", "weights.safetensors")}
    found = load_file(out / "weights.safetensors")
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    assert leftovers(out.parent) == []


def test_a_training_of_widths_has_sites_and_integers_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    codes = torch.arange(-3, 3, dtype=torch.int8)
    whole = write(out, sites=SITES, integers={"codes/a": codes})
    assert read_sites(out / "sites.json") == SITES
    assert torch.equal(load_file(out / "integers.safetensors")["codes/a"], codes)
    assert set(whole.files) == {"integers.safetensors", "sites.json", "training.svg", "weights.safetensors"}


def test_an_older_folder_of_a_training_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, sites=SITES, integers={"codes/a": torch.zeros(1, dtype=torch.int8)})
    write(out, record=record(command="mixport train y"))
    assert {path.name for path in out.iterdir()} == {"weights.safetensors", "training.json", "training.svg"}
    assert read_training(out).command == "mixport train y"
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "training.json").is_file()


def foreign_file(out: Path) -> None:
    out.write_text("mine")


def foreign_folder(out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")


def foreign_record(out: Path) -> None:
    out.mkdir()
    (out / "training.json").write_text('{"steps": 3}')


def file_beside(out: Path) -> None:
    write(out)
    (out / "mine.txt").write_text("mine")


def folder_beside(out: Path) -> None:
    write(out)
    (out / "mine").mkdir()


def link(out: Path) -> None:
    other = out.with_name("other")
    write(other)
    out.symlink_to(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign_file, "exists and is not a folder"),
        (foreign_folder, "exists and is not the folder of a training, so it stays as it is"),
        (foreign_record, "exists and is not the folder of a training, so it stays as it is"),
        (file_beside, r"holds other files too \(mine\.txt\), so it stays as it is"),
        (folder_beside, r"holds other files too \(mine\), so it stays as it is"),
        (link, "exists and is not a folder"),
    ],
)
def test_what_is_not_a_training_s_stays_as_it_is(make: Any, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for attempt in (lambda: check_out(out), lambda: write(out, plot="<svg>new</svg>")):
        with pytest.raises(BadInputError, match=message) as caught:
            attempt()
        assert (
            str(out) in str(caught.value) and caught.value.hint == "choose another folder with --out FOLDER"
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert leftovers(tmp_path) == []


def test_a_folder_without_a_name_of_its_own_is_refused() -> None:
    with pytest.raises(BadInputError, match="has no name of its own"):
        check_out(Path("/"))


def test_on_a_full_disk_the_older_folder_stays_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "sync_tree", full)
    with pytest.raises(StoreError, match="out cannot be written: No space left on device"):
        write(out, plot="<svg>new</svg>")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert leftovers(tmp_path) == []


# What is written of an assignment.


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Assignment]:
    calibration = calibration_of(tmp_path_factory.mktemp("folder"))
    scheme = Scheme.parse("w3a4")
    prepared = prepare(
        float_model(without_biases()), calibration, load_target("ort-cpu"), scheme=scheme, level=False
    )
    batches = CalibrationBatches(model=prepared.model, calibration=calibration)
    return prepared, choose_nearest(
        prepared, ChoiceContext(batches=batches, learner=None, progress=SilentProgress())
    )


def test_integers_are_codes_scales_and_biases_by_layer(chosen: tuple[Prepared, Assignment]) -> None:
    prepared, assignment = chosen
    found = integers_of(assignment, prepared)
    names = [width.name for width in prepared.widths.values()]
    assert names == ["first", "second", "third", "head"]
    wanted = {f"{what}/{name}" for what in ("codes", "scales") for name in names} | {"bias/first"}
    assert found.keys() == wanted
    for node, width in prepared.widths.items():
        integers = assignment.integers[node]
        assert found[f"codes/{width.name}"].numpy().tolist() == integers.codes.tolist()
        assert found[f"scales/{width.name}"].numpy().tolist() == integers.scales.tolist()


def test_sites_are_those_that_layers_read_and_carriers_all_others(
    chosen: tuple[Prepared, Assignment], tmp_path: Path
) -> None:
    prepared, assignment = chosen
    found = sites_of(assignment, prepared, source="a test")
    assert found.source == "a test"
    assert {name: one.bits for name, one in found.layers.items()} == {
        width.name: width.bits for width in prepared.widths.values()
    }
    for node, width in prepared.widths.items():
        scale = found.layers[width.name].scale
        assert scale is not None and list(scale) == assignment.integers[node].scales.tolist()
    free = prepared.plan.free_tensors
    for site in prepared.plan.sites:
        is_free = site.role == "compute" and (site.base or site.name) in free
        choice = found.sites[site.base or site.name] if is_free else found.carriers[site.name]
        params = assignment.params[site.name]
        assert choice == SiteChoice(
            bits=site.bits,
            scale=params.scale,
            zero_point=params.zero_point,
            lowest=params.qmin,
            highest=params.qmax,
        )
    # Where layers read a carrier's own codes, its width alone stands among the sites.
    shared = {name: one for name, one in found.sites.items() if one.scale is None}
    assert len(found.sites) - len(shared) + len(found.carriers) == len(prepared.plan.sites)
    assert set(found.sites) == set(free)
    assert {name: one.bits for name, one in shared.items()} == {
        name: found.carriers[name].bits for name in shared
    }
    assert found.sites and found.carriers
    (tmp_path / "sites.json").write_text(found.text())
    assert read_sites(tmp_path / "sites.json") == found, "scales come back bit for bit"
