from __future__ import annotations

from pathlib import Path

import pytest

from mixport.pipeline.options.spelling import check_size, flag, read_pairs, read_size, read_triple, spell


def test_a_name_becomes_a_flag() -> None:
    assert flag("gen_safety_checker") == "--gen-safety-checker"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("random_weights", True, ["--random-weights"]),
        ("gen_safety_checker", False, ["--no-gen-safety-checker"]),
        ("input_size", (8, 4), ["--input-size", "8x4"]),
        ("gen_size", (512, 256), ["--gen-size", "512x256"]),
        ("mean", (0.5, 0.25, 0.0), ["--mean", "0.5,0.25,0.0"]),
        ("gate", ("a<1", "b>2"), ["--gate", "a<1", "--gate", "b>2"]),
        ("model_arg", {"depth": "4", "name": "x"}, ["--model-arg", "depth=4", "--model-arg", "name=x"]),
        ("out", Path("dist/a"), ["--out", "dist/a"]),
        ("keep_energy", 0.5, ["--keep-energy", "0.5"]),
    ],
)
def test_values_are_spelt_as_they_are_typed(name: str, value: object, words: list[str]) -> None:
    assert spell(name, value) == words


@pytest.mark.parametrize("value", [(8, 4), (512, 256)])
def test_a_spelt_size_is_read_back(value: tuple[int, int]) -> None:
    read = read_size(spell("gen_size", value)[1])
    assert isinstance(read, tuple)
    assert tuple(int(side) for side in read) == value


def test_what_is_no_text_is_left_for_the_check() -> None:
    assert read_size(None) is None
    assert read_triple((1, 2, 3)) == (1, 2, 3)
    assert read_pairs(3) == 3
    assert read_pairs({"a": 1}) == {"a": "1"}
    with pytest.raises(ValueError, match="KEY=VALUE"):
        read_pairs(["depth"])
    with pytest.raises(ValueError, match="1 or more"):
        check_size((0, 4))
