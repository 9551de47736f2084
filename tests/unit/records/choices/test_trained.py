"""The files of a training's folder: what is read back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixport.records.choices import trained
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
from mixport.records.choices.width_table import WidthTable
from mixport.records.errors import BadInputError

SITES = SitesFile(
    layers={"conv1": LayerChoice(bits=3, scale=(0.1, 1 / 3, 1e-30)), "fc": LayerChoice(bits=8)},
    sites={"relu": SiteChoice(bits=4, scale=2 / 3, zero_point=0, lowest=0, highest=15)},
    carriers={"add": SiteChoice(bits=16, scale=1e-4, zero_point=-1, lowest=-32768, highest=32767)},
    source="nipq w3a4",
)
RECORD = TrainingRecord(
    method="nipq",
    model={"name": "tiny", "source": "tests.models:tiny", "sha256": "ab"},
    model_options={"input_size": [32, 32]},
    teacher=None,
    data=TrainingData(method="labelled", source="d.npz", sha256="cd", images=39, held_out=1, labels=True),
    scheme={"weight_bits": 4, "activation_bits": 4, "spelling": "nipq:w3a4"},
    target={"name": "ort-cpu", "sha256": "ef"},
    budget="w3a4",
    settings={"loop": {"lr": 1 / 3}},
    curve=(EpochRecord(phase="noise", epoch=0, loss=1 / 7, held_out=0.5, figures={"gbop": 1e-300}),),
    decisions=({"where": "widths", "what": "lowered", "why": "budget"},),
    environment={"python": "3.11"},
    command="mixport train x",
    files={"sites.json": "01"},
)


def write(folder: Path, text: str | bytes, name: str = "sites.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_sites_are_read_back_exactly(tmp_path: Path) -> None:
    assert read_sites(write(tmp_path, SITES.text())) == SITES
    assert read_sites(write(tmp_path, SitesFile().text())) == SitesFile()


def test_what_was_not_chosen_is_not_written() -> None:
    document = json.loads(SITES.text())
    assert document["layers"]["fc"] == {"bits": 8}
    assert document["schema_version"] == 1 and SITES.text().endswith("}\n")


def test_a_record_is_read_back_exactly(tmp_path: Path) -> None:
    write(tmp_path, RECORD.text(), "training.json")
    assert read_training(tmp_path) == RECORD


def test_widths_are_those_of_layers_and_sites_alone() -> None:
    assert SITES.widths() == WidthTable(weights={"conv1": 3, "fc": 8}, activations={"relu": 4})


def test_a_table_has_the_scales_that_are_given_too() -> None:
    assert SITES.table() == WidthTable(
        weights={"conv1": 3, "fc": 8},
        activations={"relu": 4},
        weight_scales={"conv1": (0.1, 1 / 3, 1e-30)},
        steps={"relu": (2 / 3, 0)},
    )


def test_a_file_by_hand_needs_the_widths_alone(tmp_path: Path) -> None:
    found = read_sites(write(tmp_path, '{"layers": {"conv1": {"bits": 4}}}'))
    assert found.table() == WidthTable(weights={"conv1": 4})


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("{", ["(top level)", "Invalid JSON"]),
        ("", ["Invalid JSON"]),
        (b"\xff\xfe\x00", ["Invalid JSON"]),
        ("[]", ["(top level)", "got []"]),
        ("NaN", ["(top level)"]),
        ('{"layer": {}}', ["layer", "Extra inputs are not permitted"]),
        ('{"schema_version": 2}', ["schema_version", "got 2"]),
        ('{"layers": {"conv1": {}}}', ["layers.conv1.bits", "Field required"]),
        ('{"layers": {"conv1": {"bits": 1}}}', ["layers.conv1.bits", "greater than or equal to 2", "got 1"]),
        ('{"layers": {"conv1": {"bits": 17}}}', ["layers.conv1.bits", "got 17"]),
        ('{"layers": {"conv1": {"bits": 2.5}}}', ["layers.conv1.bits", "got 2.5"]),
        ('{"layers": {"conv1": {"bits": 4, "zero": 0}}}', ["layers.conv1.zero", "Extra inputs"]),
        ('{"layers": {"conv1": {"bits": 4, "scale": [1.0, 0.0]}}}', ["layers.conv1.scale.1", "got 0.0"]),
        ('{"layers": {"conv1": {"bits": 4, "scale": [NaN]}}}', ["layers.conv1.scale.0"]),
        ('{"sites": {"relu": {"bits": 4, "scale": Infinity}}}', ["sites.relu.scale", "finite"]),
        ('{"sites": {"relu": {"bits": 4, "scale": -1.0}}}', ["sites.relu.scale", "got -1.0"]),
        ('{"sites": {"relu": {"bits": 4, "zero_point": 40000}}}', ["sites.relu.zero_point", "got 40000"]),
        ('{"carriers": {"add": {"bits": "four"}}}', ["carriers.add.bits", "got 'four'"]),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_file_and_field(
    tmp_path: Path, text: str | bytes, messages: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInputError) as caught:
        read_sites(path)
    for message in [str(path), *messages]:
        assert message in str(caught.value)
    assert caught.value.hint is not None and "schema_version" in caught.value.hint


def test_what_is_shown_of_a_wrong_value_is_short(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"layers": "x" * 10_000}))
    with pytest.raises(BadInputError) as caught:
        read_sites(path)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "{}" + " " * 100)
    monkeypatch.setattr(trained, "_MAX_BYTES", 101)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(BadInputError, match=r"sites\.json is larger than 101 bytes"):
        read_sites(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"sites\.json cannot be read: No such file"):
        read_sites(tmp_path / "sites.json")
    with pytest.raises(BadInputError, match=r"training\.json cannot be read") as caught:
        read_training(tmp_path)
    assert caught.value.hint == "--trained takes the folder that mixport train --out wrote"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method"),
        ({"files": {"a": 1}}, "files.a"),
        ({"curve": [{"phase": "a"}]}, "curve.0.epoch"),
        ({"surprise": 1}, "surprise"),
        ({"data": None}, "data"),
        ({"command": None}, "command"),
        ({"model": {"name": "tiny"}}, "model: Value error, source, sha256 missing"),
        ({"target": {"name": "tiny"}}, "target: Value error, sha256 missing"),
        ({"scheme": {"weight_bits": 4}}, "scheme: Value error, no fields of a scheme: .*activation_bits"),
        ({"scheme": {"weight_bits": 4, "activation_bits": 4, "magic": 1}}, "scheme: .*magic"),
    ],
)
def test_a_record_that_is_wrong_is_refused_by_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write(tmp_path, json.dumps({**json.loads(RECORD.text()), **change}), "training.json")
    with pytest.raises(BadInputError, match=rf"training\.json: {message}"):
        read_training(tmp_path)
