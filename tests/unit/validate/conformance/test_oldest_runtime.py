"""The oldest onnxruntime, from what is in a file."""

from __future__ import annotations

import itertools

import pytest

from mixport.validate.conformance.catalogue import FORMS
from mixport.validate.conformance.oldest_runtime import (
    FileContents,
    OldestRuntime,
    contents_of,
    oldest_onnxruntime,
)
from mixport.validate.conformance.used_forms import used_forms
from mixport.validate.interpreter.graph import read_graph
from tests.unit.validate.qdq_graphs import build_network, build_transformer

CNN = "conv.w8 add.integer-ratio gemm.float-output"
PRODUCT, SQRT, SPACE = "matmul.dynamic", "float.sqrt", "move.depth-to-space"


def contents(opset: int, ir_version: int, *forms: str, storages: str = "INT8 UINT8 FLOAT") -> FileContents:
    return FileContents(
        opset=opset,
        ir_version=ir_version,
        storages=frozenset(storages.split()),
        forms=frozenset([*CNN.split(), *forms]),
    )


@pytest.mark.parametrize(
    ("given", "version", "why"),
    [
        (contents(13, 7), "1.16.3", "opset 13, IR 7"),
        (contents(17, 8), "1.16.3", "opset 17, IR 8"),
        (contents(19, 9), "1.16.3", "opset 19, IR 9"),
        (contents(17, 8, PRODUCT), "1.16.3", "opset 17, IR 8"),
        (contents(17, 8, SPACE), "1.28.0", "SpaceToDepth or DepthToSpace of codes"),
        (contents(17, 10), "1.18.0", "opset 17, IR 10"),
        (contents(20, 9), "1.18.0", "opset 20, IR 9"),
        (contents(21, 10), "1.18.0", "opset 21, IR 10"),
        (contents(21, 10, PRODUCT), "1.20.0", "MatMul of codes at opset 21"),
        (contents(21, 10, SQRT), "1.21.0", "Sqrt of float32"),
        (contents(21, 10, storages="INT8 INT16"), "1.20.0", "16-bit codes"),
        (contents(21, 10, storages="INT8 UINT16"), "1.20.0", "16-bit codes"),
        (contents(21, 10, storages="INT8 INT4"), "1.23.2", "INT4 weights"),
        (contents(21, 10, PRODUCT, SQRT, storages="INT8 INT4 INT16"), "1.23.2", "INT4 weights"),
        (contents(21, 10, SPACE, storages="INT4"), "1.28.0", "SpaceToDepth or DepthToSpace of codes"),
        (contents(22, 10), "1.24.1", "opset 22, IR 10"),
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
    for kind, form in itertools.product(kinds, ("", PRODUCT, SQRT, SPACE)):
        versions = [number(contents(*header, form, storages=kind)) for header in headers]
        assert versions == sorted(versions)
        for header, version in zip(headers, versions, strict=True):
            assert version >= number(contents(*header, storages="INT8"))


def test_the_kit_has_every_form_of_the_table() -> None:
    assert {PRODUCT, SQRT, SPACE, *CNN.split()} <= {form.name for form in FORMS}


def test_only_files_of_our_own_are_judged() -> None:
    model = build_network(bits=4).build("head_sum")
    used = used_forms(model)
    assert contents_of(read_graph(model), used) is None
    model.producer_name = "mixport"
    found = contents_of(read_graph(model), used)
    assert found is not None and "INT4" in found.storages and "conv.w4.int4" in found.forms
    assert (found.opset, found.ir_version) == (model.opset_import[0].version, model.ir_version)
    assert oldest_onnxruntime(found).version == "1.23.2"


def test_attention_is_seen() -> None:
    model = build_transformer().build("logits_sum")
    model.producer_name = "mixport"
    found = contents_of(read_graph(model), used_forms(model))
    assert found is not None and PRODUCT in found.forms and "INT16" in found.storages
