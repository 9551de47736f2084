from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import fx

from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.loop.checkpoints import FinishedUnit, NoCheckpoints, read_unit, write_unit
from mixport.quantize.sites.widths import LayerWidth
from mixport.records.choices.search import UnitRecord
from mixport.records.decision import Decision


def layers() -> dict[str, fx.Node]:
    graph = fx.Graph()
    return {
        name: graph.placeholder(name.replace(".", "_"))
        for name in ("block.conv1", "block.conv2", "block.wide")
    }


@pytest.mark.parametrize("errors", [(0.1 + 0.2, 1e-300), (None, None)])
def test_a_unit_comes_back_as_it_was(errors: tuple[float | None, float | None], tmp_path: Path) -> None:
    named = layers()
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 2, 2, 1).transpose(0, 2, 1, 3)
    scales = np.array([1e-30, 0.1, 1 / 3, 3e30], np.float32)
    integers = {
        named["block.conv1"]: LayerIntegers(scales=scales, codes=codes, bias=None),
        named["block.conv2"]: LayerIntegers(
            scales=scales[:1], codes=codes[:1], bias=np.array([-0.7], np.float32)
        ),
    }
    step = float(np.float32(0.1))
    record = UnitRecord(
        name="block",
        layers=("block.conv1",),
        sites=("a/b", "c"),
        error_before=errors[0],
        error_after=errors[1],
        batch=32,
        dropped=0.25,
    )
    decisions = (Decision(where="a", what="b", why="ü"),)
    unit = FinishedUnit(integers=integers, steps={"a/b": step, "c": 2.0}, record=record, decisions=decisions)
    write_unit(
        tmp_path,
        unit,
        {node: LayerWidth(name=name, bits=4, reason="", fixed=False) for name, node in named.items()},
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unit.json", "unit.safetensors"]
    back = read_unit(tmp_path, named)
    assert (back.record, back.decisions, back.steps) == (record, decisions, unit.steps)
    assert back.integers.keys() == integers.keys(), "a layer that was not learned is not in the file"
    for node, expected in integers.items():
        found = back.integers[node]
        np.testing.assert_array_equal(found.codes, expected.codes, strict=True)
        np.testing.assert_array_equal(found.scales, expected.scales, strict=True)
        assert (found.bias is None) == (expected.bias is None)
        if expected.bias is not None and found.bias is not None:
            np.testing.assert_array_equal(found.bias, expected.bias, strict=True)


def test_a_unit_without_anything_learned_comes_back_too(tmp_path: Path) -> None:
    record = UnitRecord(
        name="block", layers=(), sites=(), error_before=0.5, error_after=0.5, batch=4, dropped=0.25
    )
    unit = FinishedUnit(integers={}, steps={}, record=record, decisions=())
    write_unit(tmp_path, unit, {})
    assert read_unit(tmp_path, layers()) == unit


@pytest.mark.parametrize("name", ["step", "codes", "step/codes", "bias"])
def test_layers_and_sites_may_be_called_anything(name: str, tmp_path: Path) -> None:
    node = fx.Graph().placeholder("x")
    bias = np.array([0.5], np.float32)
    integers = LayerIntegers(
        scales=np.array([0.25], np.float32), codes=np.array([[1, -2]], np.int8), bias=bias
    )
    record = UnitRecord(
        name=name, layers=(name,), sites=(name,), error_before=0.5, error_after=0.25, batch=4, dropped=0.25
    )
    unit = FinishedUnit(
        integers={node: integers}, steps={name: 0.125, f"{name}/codes": 0.5}, record=record, decisions=()
    )
    write_unit(tmp_path, unit, {node: LayerWidth(name=name, bits=2, reason="", fixed=False)})
    back = read_unit(tmp_path, {name: node})
    assert back.steps == unit.steps
    np.testing.assert_array_equal(back.integers[node].codes, integers.codes)
    np.testing.assert_array_equal(back.integers[node].bias, bias)


def test_without_checkpoints_nothing_is_kept() -> None:
    checkpoints = NoCheckpoints()
    with checkpoints.keep(0) as folder:
        (folder / "file").touch()
    assert not folder.exists()
    assert checkpoints.find(0) is None
