"""The oldest onnxruntime, from what is in a file."""

from __future__ import annotations

import itertools

import pytest

from mixport.validate.interpreter.graph import read_graph
from mixport.validate.oldest_runtime import FileContents, OldestRuntime, contents_of, oldest_onnxruntime
from tests.unit.validate.qdq_graphs import build_network

CNN = frozenset({"QuantizeLinear", "DequantizeLinear", "Conv", "Add", "Gemm"})


def contents(
    opset: int = 21, ir_version: int = 10, *, storages: str = "INT8 UINT8 FLOAT", matmul: bool = False
) -> FileContents:
    return FileContents(
        opset=opset,
        ir_version=ir_version,
        storages=frozenset(storages.split()),
        operators=CNN | ({"MatMul"} if matmul else set()),
    )


@pytest.mark.parametrize(
    ("given", "version", "why"),
    [
        (contents(13, 7), "1.16.3", "opset 13, IR 7"),
        (contents(17, 8), "1.16.3", "opset 17, IR 8"),
        (contents(19, 9), "1.16.3", "opset 19, IR 9"),
        (contents(17, 8, matmul=True), "1.16.3", "opset 17, IR 8"),
        (contents(17, 10), "1.18.0", "opset 17, IR 10"),
        (contents(20, 9), "1.18.0", "opset 20, IR 9"),
        (contents(21, 10), "1.18.0", "opset 21, IR 10"),
        (contents(21, 10, matmul=True), "1.20.0", "MatMul at opset 21"),
        (contents(21, 10, storages="INT8 INT16"), "1.20.0", "16-bit codes"),
        (contents(21, 10, storages="INT8 UINT16"), "1.20.0", "16-bit codes"),
        (contents(21, 10, storages="INT8 INT4"), "1.23.2", "INT4 weights"),
        (contents(21, 10, storages="INT8 INT4 INT16", matmul=True), "1.23.2", "INT4 weights"),
        (contents(22, 10), "1.24.1", "opset 22, IR 10"),
        (contents(25, 13), "1.24.1", "opset 25, IR 13"),
        (contents(25, 13, storages="INT8 INT4 INT2"), "1.24.1", "opset 25, IR 13"),
    ],
)
def test_the_newest_of_what_a_file_asks_for(given: FileContents, version: str, why: str) -> None:
    assert oldest_onnxruntime(given) == OldestRuntime(version=version, why=why)


def test_more_in_a_file_never_needs_an_older_runtime() -> None:
    def number(one: FileContents) -> tuple[int, ...]:
        return tuple(map(int, oldest_onnxruntime(one).version.split(".")))

    headers = [(13, 7), (17, 8), (19, 9), (21, 10), (23, 11), (25, 13)]
    kinds = ["INT8", "INT8 INT16", "INT8 INT4", "INT8 INT2"]
    for kind, matmul in itertools.product(kinds, (False, True)):
        versions = [number(contents(*header, storages=kind, matmul=matmul)) for header in headers]
        assert versions == sorted(versions)
        for header, version in zip(headers, versions, strict=True):
            assert version >= number(contents(*header, storages="INT8"))


def test_only_files_of_our_own_are_judged() -> None:
    model = build_network(bits=4).build("head_sum")
    assert contents_of(read_graph(model)) is None
    model.producer_name = "mixport"
    found = contents_of(read_graph(model))
    assert found is not None and "INT4" in found.storages and "Conv" in found.operators
    assert (found.opset, found.ir_version) == (model.opset_import[0].version, model.ir_version)
    assert oldest_onnxruntime(found).version == "1.23.2"
