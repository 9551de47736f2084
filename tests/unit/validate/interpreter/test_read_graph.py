"""Reading ONNX files: what is refused, and what narrow initialisers become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mixport.records.errors import BadInputError
from mixport.validate.interpreter.graph import infer_shapes, load_model, read_graph
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.onnx does not exist"):
        load_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00\x01not a model", b"PK\x03\x04"])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"bad\.onnx"):
        load_model(path)


def test_external_data_is_refused() -> None:
    model = build_network().build("head_sum")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(BadInputError, match="external data"):
        read_graph(model)


def test_an_undefined_tensor_is_refused() -> None:
    model = build_network().build("head_sum")
    model.graph.node[3].input[0] = "nobody"
    with pytest.raises(BadInputError, match="reads nobody"):
        read_graph(model)


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT2"), (4, "INT4")])
def test_narrow_initialisers_become_int8(bits: int, kind: str) -> None:
    graph = read_graph(build_network(bits=bits).build("head_sum"))
    assert graph.stored["branch.weight"] == kind
    weights = graph.constants["branch.weight"]
    assert weights.dtype == np.int8
    assert weights.min() >= -(2 ** (bits - 1)) and weights.max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize(
    ("name", "shown"), [("", "r"), ("n12", "r"), ("n12/Add", "n12/Add"), ("relu", "relu")]
)
def test_nodes_without_a_name_and_with_a_number_take_their_first_output(name: str, shown: str) -> None:
    b = QdqBuilder()
    b.nodes.append(helper.make_node("Relu", ["input"], ["r"], name=name))
    assert read_graph(b.build("r")).nodes[0].name == shown


def test_shapes_follow_the_input() -> None:
    model: onnx.ModelProto = build_network().build("head_sum")
    shapes = infer_shapes(model, feeds={"input": (5, 3, 8, 8)})
    assert shapes["branch"] == (5, 8, 8, 8)
    assert shapes["output"] == (5, 10)
