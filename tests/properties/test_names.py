"""Names of a file do not depend on what users call their modules: each is there, once, and to nothing
else.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.model.request import PreprocessingOverrides
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.quantized_model import LoweredGraph, QuantizedModel
from mixport.records.targets import load_target
from mixport.storage.npz import write_npz
from mixport.validate.interpreter.interpreter import Interpreter

OUR_OWN = (
    "c0",
    "c1",
    "c2",
    "t0",
    "t1",
    "t2",
    "t5",
    "n0",
    "n1",
    "n7",
    "uint8/128",
    "int8/0",
    "zeros/4",
    "axes/-1",
    "a/dq",
    "a/in",
    "a/q",
    "a/scale",
    "a/Conv",
)
TORCHS = (
    "graph",
    "code",
    "meta",
    "recompile",
    "_guards_fn",
    "_in_spec",
    "_graph",
    "print_readable",
    "delete_submodule",
)
PYTHONS = (
    "class",
    "def",
    "None",
    "1",
    "0x",
    "self",
    "torch",
    "device",
    "input",
    "output",
    "args",
    "_",
    "x",
    "conv2d",
    "add",
    "weight",
)
ODD = (
    "a b",
    "a/b",
    "a//b",
    "/a",
    "$x$",
    "[red]",
    "[/]",
    "{0}",
    "%s",
    "<b>",
    "é",
    "²",
    "名",
    "a\nb",
    "a\0b",
    "a\\b",
    "npy",
    "\ud800",
    "con",
)
NASTY = (*OUR_OWN, *TORCHS, *PYTHONS, *ODD)


def build(folder: Path, names: list[str], *, program: bool = False) -> tuple[QuantizedModel, LoweredGraph]:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    calibration = CalibrationSet(
        images_path=folder / "images.npy", count=2, method="images", recipe_key="", content_sha256=""
    )
    spec = "tests.models:named"
    model = load_model(
        spec, model_args={"names": repr(names)}, overrides=PreprocessingOverrides(input_size=(4, 4))
    )
    if program:
        exported = torch.export.export(model.module, (torch.zeros(1, 3, 4, 4),))
        torch.export.save(exported, folder / "named.pt2")
        model = load_model(str(folder / "named.pt2"))
    target = load_target("onnx-int8")
    quantized = quantize(model, calibration, target, scheme=Scheme.parse("w4a4"), workdir=folder)
    return quantized, lower(quantized, target, workdir=folder)


def check(quantized: QuantizedModel, lowered: LoweredGraph) -> None:
    graph = onnx.load(str(lowered.model_path)).graph
    values = [value for node in graph.node for value in node.output]
    every = [
        *values,
        *(port.name for port in (*graph.input, *graph.initializer)),
        *(node.name for node in graph.node),
    ]
    assert all(every)
    assert {name: count for name, count in Counter(every).items() if count > 1} == {}
    assert {site.name for site in quantized.activations} <= set(values)
    x = np.random.default_rng(1).uniform(-2, 2, (1, 3, 4, 4)).astype(np.float32)
    expected = open_simulation(quantized).simulate(x, overrides={}).codes
    got = Interpreter(lowered.model_path).run(x).codes
    codes = {site.name: got[site.name] for site in quantized.activations}
    for name, array in codes.items():
        np.testing.assert_array_equal(array, expected[name])
    write_npz(lowered.model_path.parent / "codes.npz", codes)
    with np.load(lowered.model_path.parent / "codes.npz") as read:
        assert set(read.files) == set(codes)


@pytest.mark.sweep
@pytest.mark.parametrize("program", [False, True], ids=["module", "pt2"])
def test_every_nasty_name_at_once(tmp_path: Path, program: bool) -> None:
    check(*build(tmp_path, list(NASTY), program=program))


@given(
    names=st.lists(
        st.sampled_from(NASTY) | st.from_regex(r"[a-z0-9_]{1,3}", fullmatch=True),
        min_size=2,
        max_size=5,
        unique=True,
    )
)
@settings(max_examples=2, deadline=None)
def test_any_names(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(*build(Path(folder), [name for name in names if name not in {"stem", "head", "ways"}]))


def test_sites_keep_the_names_of_modules(tmp_path: Path) -> None:
    quantized, lowered = build(tmp_path, ["graph", "c1", "class"])
    assert [site.name for site in quantized.weights] == [
        "stem",
        "graph.c1",
        "c1.class",
        "class.graph",
        "head",
    ]
    operators = {
        node.name
        for node in onnx.load(str(lowered.model_path)).graph.node
        if node.op_type in {"Conv", "Gemm"}
    }
    assert operators == {"stem/Conv", "graph.c1/Conv", "c1.class/Conv", "class.graph/Conv", "head/Gemm"}
