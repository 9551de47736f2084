"""One program with every operator of mixport: which nodes the exporter writes, with which attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.arithmetic.torch_ops import OPS
from mixport.lower.onnx_graph import constant_of
from mixport.lower.translate import DOMAIN, translate
from mixport.records.choices.scheme import Scheme
from mixport.records.errors import UnsupportedModelError
from mixport.records.quantized_model import QuantizedModel
from mixport.records.signature import ModelPort, Signature

EPSILON = 1e-5 / 3
"""Not a float32 number: its text must be exact."""
CODES = {"scale": 0.5, "zero_point": 3, "storage": "uint8"}


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(-6, 6, dtype=torch.int8).reshape(4, 3, 1, 1))
        self.register_buffer("bias", torch.arange(4, dtype=torch.int32) * 70_000)
        self.register_buffer("scales", torch.tensor([0.5, 0.25, 1.0, 2.0]))
        self.register_buffer("table", torch.arange(255, -1, -1).to(torch.uint8))
        self.register_buffer("gamma", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        x = OPS.quantize_dequantize(x, "input", 0.5, 3, 0, 15, "uint8")
        weight = OPS.dequantize_weight(self.codes, self.scales, "conv.weight", 4)
        x = F.conv2d(x, weight, OPS.dequantize_weight(self.bias, self.scales, "conv.bias", 32))
        x = OPS.lookup(x, self.table, "act", 0.25, 9, 0.5, 3, 0, 255, "table", "uint8")
        x = OPS.space_to_depth(F.pad(x, (1, 2, 3, 2), mode="reflect")[..., :-1], 2)
        x = F.pad(F.pad(x, (0, 1, 0, 0), mode="replicate"), (0, 0, 1, 0), mode="circular")
        x = F.pad(F.pad(x, (1, 0), value=1.5), (0, 0, 0, 0, 1, 0))
        x = OPS.layer_norm(x, self.gamma, self.gamma, "norm", EPSILON, 0.5, 3, "uint8")
        x = OPS.coded_numerators(x, "attn", 0.5, 3, 0.125, "uint8")
        return OPS.softmax(OPS.global_average_pool(x).flatten(1), 12)


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x).sum(-1)


def quantized(module: nn.Module, folder: Path) -> QuantizedModel:
    program = torch.export.export(module.eval(), (torch.zeros(1, 3, 4, 4),))
    torch.export.save(program, folder / "program.pt2")
    return QuantizedModel(
        program_path=folder / "program.pt2",
        signature=Signature(
            inputs=(ModelPort(name="picture", shape=(None, 3, 4, 4), role="image"),),
            outputs=(ModelPort(name="scores", shape=(None, 17), role="logits"),),
            task="classification",
        ),
        scheme=Scheme.parse("w4a4"),
        activations=(),
        weights=(),
        decisions=(),
        input_shape=(1, 3, 4, 4),
        dynamic_batch=False,
        float_bytes=0,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return translate(quantized(Everything(), tmp_path_factory.mktemp("program")), opset=21)


def only(model: ir.Model, op_type: str) -> ir.Node:
    (found,) = [n for n in model.graph if n.op_type == op_type]
    return found


def test_ports_and_opset_are_those_asked_for(model: ir.Model) -> None:
    assert [value.name for value in model.graph.inputs] == ["picture"]
    assert [value.name for value in model.graph.outputs] == ["scores"]
    assert dict(model.opset_imports) == {"": 21, DOMAIN: 1}


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("QuantizeDequantize", {**CODES, "site": "input", "qmin": 0, "qmax": 15}),
        ("DequantizeWeight", {"site": "conv.weight", "bits": 4}),
        ("DequantizeBias", {"site": "conv.bias"}),
        (
            "Lookup",
            {**CODES, "site": "act", "in_scale": 0.25, "in_zero_point": 9, "form": "table"},
        ),
        ("LayerNorm", {**CODES, "name": "norm", "epsilon": repr(EPSILON)}),
        ("Numerators", {**CODES, "name": "attn", "step": 0.125}),
        ("Softmax", {"bits": 12}),
        ("SpaceToDepth", {"blocksize": 2}),
        ("GlobalAveragePool", {}),
    ],
)
def test_integers_are_attributes(model: ir.Model, op_type: str, attributes: dict[str, object]) -> None:
    assert {name: one.value for name, one in only(model, op_type).attributes.items()} == attributes


def test_codes_are_constants_of_their_own_type(model: ir.Model) -> None:
    held = [constant_of(only(model, op).inputs[0]) for op in ("DequantizeWeight", "DequantizeBias")]
    assert [(str(one.dtype), one.ravel().tolist()) for one in held if one is not None] == [
        ("int8", list(range(-6, 6))),
        ("int32", [0, 70_000, 140_000, 210_000]),
    ]
    table = constant_of(only(model, "Lookup").inputs[1])
    assert table is not None
    np.testing.assert_array_equal(table, np.arange(255, -1, -1, dtype=np.uint8))


def test_pads_count_from_the_first_axis(model: ir.Model) -> None:
    found = []
    for n in model.graph:
        if n.op_type == "Pad":
            amounts = constant_of(n.inputs[1])
            assert amounts is not None
            filler = constant_of(n.inputs[2]) if len(n.inputs) > 2 else None
            value = None if filler is None else float(filler)
            found.append((n.attributes["mode"].as_string(), amounts.tolist(), value))
    assert found == [
        ("reflect", [0, 0, 3, 1, 0, 0, 2, 2], None),
        ("edge", [0, 0, 0, 0, 0, 0, 0, 1], None),
        ("wrap", [0, 0, 1, 0, 0, 0, 0, 0], None),
        ("constant", [0, 0, 0, 1, 0, 0, 0, 0], 1.5),
        ("constant", [0, 1, 0, 0, 0, 0, 0, 0], None),
    ]


def test_an_operator_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no ONNX form: .*linalg_svd") as caught:
        translate(quantized(Spectral(), tmp_path), opset=21)
    assert caught.value.hint == "replace the operator in the model, or report the architecture"
