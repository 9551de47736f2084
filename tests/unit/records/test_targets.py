from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mixport.records.choices.scheme import Scheme
from mixport.records.errors import TargetError
from mixport.records.targets import load_target, shipped_targets

ORT_CPU = shipped_targets()["ort-cpu"]


def edited(folder: Path, old: str, new: str) -> Path:
    text = ORT_CPU.read_text(encoding="utf-8")
    assert old in text
    path = folder / "mine.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(shipped_targets()))
def test_every_shipped_target_is_valid_and_states_its_sources(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.sources
    assert target.sha256 == hashlib.sha256(shipped_targets()[name].read_bytes()).hexdigest()


@pytest.mark.parametrize("name", sorted(shipped_targets()))
def test_every_shipped_target_stores_every_width_it_allows(name: str) -> None:
    target = load_target(name)
    for bits in target.weights.bits:
        target.check_scheme(Scheme(weight_bits=bits, activation_bits=8))


def test_ort_cpu_holds_what_onnxruntime_was_measured_to_do() -> None:
    target = load_target("ort-cpu")
    assert dict(target.weights.storage) == {
        2: "int2",
        3: "int4",
        4: "int4",
        5: "int8",
        6: "int8",
        7: "int8",
        8: "int8",
    }
    assert target.activations.storage == "uint8"
    assert (target.opset_for({"int4", "int8"}), target.opset_for({"int2", "int8"})) == (21, 25)
    assert target.graph.opset_max == 26
    assert target.graph.ir_version_max == 13
    assert (target.session.optimization_level, target.session.threads) == ("all", 1)


def test_a_bound_on_pairs_is_optional(tmp_path: Path) -> None:
    assert {load_target(name).accumulator.pair_limit for name in shipped_targets()} == {32767}
    assert load_target(str(edited(tmp_path, "pair_limit = 32767", ""))).accumulator.pair_limit is None
    with pytest.raises(TargetError, match="pair_limit"):
        load_target(str(edited(tmp_path, "pair_limit = 32767", "pair_limit = 12")))


def test_a_target_file_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    target = load_target(str(edited(tmp_path, 'shapes = "dynamic-batch"', 'shapes = "static"')))
    assert (target.name, target.graph.shapes) == ("mine", "static")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'ort-gpu', known: .*ort-cpu") as caught:
        load_target("ort-gpu")
    assert caught.value.hint == "mixport targets list"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ('granularity = "per-channel"', 'granularity = "per-group"', "weights.granularity"),
        ("threads = 1", "threads = 0", "session.threads"),
        ('shapes = "dynamic-batch"', 'shapes = "dynamic-batch"\ncolour = "red"', "graph.colour"),
        ("opset = 21\n", "", "graph.opset"),
        ('title = "', 'title = = "', "cannot be read"),
        ('zero_point = "any"', 'zero_point = "zero"', "activations.*storage must be 'int8'"),
        ('3 = "int4"', '3 = "int2"', "weights.storage.*codes of 3 bits do not fit int2"),
        ('3 = "int4"', '3 = "uint8"', "weights.storage.3"),
        ("stream_bits = [8, 16]", "stream_bits = [12]", "activations.stream_bits"),
        ("[weights]\nbits = [2, 3, 4", "[weights]\nbits = [1, 3, 4", "weights.bits"),
        ('"Conv", "Gemm"', '"Conv2D", "Gemm"', "operators.integer.*unknown operator 'Conv2D'"),
        ('"Conv", "Gemm", "MatMul", ', "", "operators.integer.*no operator that layers run on"),
        ("opset = 21\n", "opset = 27\n", "graph.opset: .*less than or equal to 26"),
        ("opset = 21\n", "opset = 12\n", "graph.opset: .*greater than or equal to 13"),
        ("opset = 21\n", "opset = 20\n", "weights.storage int4 needs opset 21, and graph.opset is 20$"),
        ("opset_int2 = 25\n", "", "weights.storage has int2, and graph.opset_int2 is missing$"),
        ("ir_version_max = 13", "ir_version_max = 6", "graph.ir_version_max: .*greater than or equal to 7"),
        ("opset_int2 = 25\n", "opset_int2 = 24\n", "graph.opset_int2: .*greater than or equal to 25"),
        ("opset_max = 26\n", "opset_max = 24\n", "graph: .*opset_int2 is 25, allowed up to opset_max 24"),
        ('form = "float32"', 'form = "float16"', "scale.form"),
        ('rounding = "half-even"', 'rounding = "half-away"', "scale.rounding"),
    ],
)
def test_a_damaged_target_file_is_refused_with_the_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(TargetError, match=message) as caught:
        load_target(str(path))
    assert str(path) in str(caught.value)
    assert caught.value.hint == "mixport targets show ort-cpu"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stream_bits = [8]", "stream_bits = [8, 16]", "activations.stream_bits 16 needs opset 21"),
        ("float = [", 'float = ["HardSwish", ', "functions.float HardSwish needs opset 14"),
        ("float = [", 'float = ["Gelu", ', "functions.float Gelu needs opset 20"),
        ('4 = "int8"', '4 = "int4"', "weights.storage int4 needs opset 21"),
        ('2 = "int8"', '2 = "int2"', "weights.storage has int2, and graph.opset_int2 is missing"),
        ("opset = 13\n", "opset = 17\n", "graph: .*opset is 17, allowed up to opset_max 13"),
    ],
)
def test_a_target_asks_for_nothing_that_its_opset_does_not_have(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = shipped_targets()["onnx-opset13"].read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "mine.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TargetError, match=message):
        load_target(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(("name", "opset", "ir_version"), [("onnx-opset13", 13, 7), ("onnx-opset17", 17, 8)])
def test_targets_of_older_opsets(name: str, opset: int, ir_version: int) -> None:
    target = load_target(name)
    assert (target.graph.opset, target.graph.opset_max, target.graph.ir_version_max) == (
        opset,
        opset,
        ir_version,
    )
    assert set(target.weights.storage.values()) == {"int8"}
    assert target.activations.stream_bits == (8,)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(str(path))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with path.open("wb") as stream:
        stream.truncate((1 << 20) + 1)
    with pytest.raises(TargetError, match="larger than"):
        load_target(str(path))


def test_a_scheme_that_the_target_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "[weights]\nbits = [2, 3, 4, 5, 6, 7, 8]", "[weights]\nbits = [8]")
    with pytest.raises(TargetError, match="weight bits 4 asked for, allowed 8"):
        load_target(str(path)).check_scheme(Scheme(weight_bits=4, activation_bits=8))


def test_edge_bits_count_too(tmp_path: Path) -> None:
    path = edited(tmp_path, "[activations]\nbits = [2, 3, 4, 5, 6, 7, 8]", "[activations]\nbits = [4]")
    with pytest.raises(TargetError, match="activation bits 8 asked for, allowed 4"):
        load_target(str(path)).check_scheme(Scheme(weight_bits=4, activation_bits=4))


def test_a_width_without_a_storage_type_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, '4 = "int4", ', "")
    with pytest.raises(TargetError, match="no storage type for 4-bit weights"):
        load_target(str(path)).check_scheme(Scheme(weight_bits=4, activation_bits=8))


def test_widths_that_take_the_same_room_are_no_choice(tmp_path: Path) -> None:
    assert load_target("ort-cpu").budget_widths() == (2, 4, 8)
    assert load_target("onnx-int8").budget_widths() == (8,)
    path = edited(tmp_path, "[weights]\nbits = [2, 3, 4, 5, 6, 7, 8]", "[weights]\nbits = [3, 5, 6]")
    assert load_target(str(path)).budget_widths() == (3, 6)
    path = edited(tmp_path, "[weights]\nbits = [2, 3, 4, 5, 6, 7, 8]", "[weights]\nbits = [5, 7]")
    with pytest.raises(
        TargetError, match=r"weight bits 2, 3, 4, 6, 8 to choose from under a size budget, allowed 5, 7"
    ):
        load_target(str(path)).check_scheme(Scheme.parse("auto:0.1", edge_bits=7))


@pytest.mark.parametrize(
    ("count", "bits", "size"), [(9, 2, 3), (8, 2, 2), (9, 3, 5), (9, 4, 5), (9, 6, 9), (9, 8, 9), (0, 2, 0)]
)
def test_weights_take_what_their_storage_type_packs_them_to(count: int, bits: int, size: int) -> None:
    assert load_target("ort-cpu").weight_bytes(count, bits=bits) == size
