"""The last pass: names, versions, and what is thrown away."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixport.lower.onnx_graph import LAYER, SITE, mark
from mixport.lower.passes.finish import FinishPass
from mixport.records.errors import TargetError
from mixport.records.signature import classifier
from mixport.records.targets import Target, load_target

TARGET = load_target("ort-cpu")
WIDE = "int8[2,4,1,1] w = {1, -1, 0, 1, -2, 1, 0, 1}"
NARROW = "int2[2,4,1,1] w = {1, -1, 0, 1, -2, 1, 0, 1}"
BODY = """c = Cast <to = 3> (w) wf = DequantizeLinear(c, ws, wz) p = Conv <kernel_shape = [1, 1]> (x, wf)
q = QuantizeLinear(p, s, z) k = Clip(q, low, high) d = DequantizeLinear(k, s, z) r = Relu(d) y = Flatten(r)"""
SCALARS = "float ws = {0.5}, int8 wz = {0}, float s = {0.5}, uint8 z = {3}, uint8 low = {0}, uint8 high = {9}"


def parse(body: str, *, inits: str = SCALARS) -> ir.Model:
    text = f"""<ir_version: 9, opset_import: ["" : 21], producer_name: "torch", producer_version: "2.9",
    doc_string: "long"> main_graph (float[N,4,1,1] x) => (float[N,2] y) <{inits}> {{ {body} }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def finish(model: ir.Model, *, sites: tuple[str, ...] = (), target: Target = TARGET) -> ir.Model:
    signature = classifier((1, 4, 1, 1), classes=2)
    result = FinishPass(target, frozenset(sites), signature)(model)
    assert result.modified is True
    return result.model


def value(model: ir.Model, name: str) -> ir.Value:
    (found,) = [v for n in model.graph for v in n.outputs if v.name == name]
    return found


def names(model: ir.Model) -> list[tuple[str, str | None, str | None]]:
    return [(n.op_type, n.name, n.outputs[0].name) for n in model.graph]


def convolution(inits: str = WIDE) -> ir.Model:
    """A convolution whose codes are the site `stem`."""
    model = parse(BODY, inits=f"{inits}, {SCALARS}")
    mark(value(model, "k"), SITE, "stem")
    mark(value(model, "wf"), LAYER, "stem.conv")
    return model


def test_sites_and_layers_keep_their_names_and_the_rest_gets_short_ones() -> None:
    model = finish(convolution(), sites=("stem",))
    assert names(model) == [
        ("Cast", "n0", "t0"),
        ("DequantizeLinear", "n1", "t1"),
        ("Conv", "stem.conv/Conv", "t2"),
        ("QuantizeLinear", "n2", "t3"),
        ("Clip", "n3", "stem"),
        ("DequantizeLinear", "n4", "t4"),
        ("Relu", "Relu", "t5"),
        ("Flatten", "Flatten", "output"),
    ]
    assert [v.name for v in model.graph.inputs] == ["input"]
    onnx.checker.check_model(ir.to_proto(model))


def test_an_addition_is_named_after_the_site_it_feeds_through_a_clip_too() -> None:
    body = "a = Add(x, x) q = QuantizeLinear(a, s, z) k = Clip(q, low, high) y = DequantizeLinear(k, s, z)"
    model = parse(body)
    mark(value(model, "k"), SITE, "sum")
    assert names(finish(model, sites=("sum",)))[0] == ("Add", "sum/Add", "t0")


def test_no_name_is_given_twice() -> None:
    body = "a = Mul(x, input) b = Mul(a, stem) c = Relu(b) d = Relu(c) y = Flatten(d)"
    model = parse(body, inits="float input = {2.0}, float stem = {3.0}")
    mark(value(model, "b"), SITE, "stem")
    done = finish(model, sites=("stem", "t0"))
    assert [(op, out) for op, _, out in names(done)] == [
        ("Mul", "t1"),
        ("Mul", "stem"),
        ("Relu", "t2"),
        ("Relu", "t3"),
        ("Flatten", "output"),
    ]
    assert [name for _, name, _ in names(done)] == ["Mul", "Mul_2", "Relu", "Relu_2", "Flatten"]
    assert sorted(done.graph.initializers) == ["input_2", "stem_2"]
    assert [tensor.name for tensor in ir.to_proto(done).graph.initializer] == list(done.graph.initializers)


OUR_OWN = [*(f"{letter}{i}" for letter in "nt" for i in range(6)), "Relu", "Flatten", "k", "k/Conv"]


@given(
    site=st.sampled_from(OUR_OWN),
    layer=st.sampled_from([*OUR_OWN, "output"]),
    weight=st.sampled_from([*OUR_OWN, "output"]),
)
def test_every_node_has_a_name_that_no_tensor_and_no_other_node_has(
    site: str, layer: str, weight: str
) -> None:
    model = parse(BODY, inits=f"{WIDE}, {SCALARS}")
    mark(value(model, "k"), SITE, site)
    mark(value(model, "wf"), LAYER, layer)
    model.graph.initializers["w"].name = weight
    graph = ir.to_proto(finish(model, sites=(site,))).graph
    values = {*(name for n in graph.node for name in n.output), *(v.name for v in graph.input)}
    values |= {tensor.name for tensor in graph.initializer}
    nodes = [n.name for n in graph.node]
    assert all(nodes)
    assert len(set(nodes)) == len(nodes)
    assert not values & set(nodes)
    assert len(values) == sum(len(n.output) for n in graph.node) + len(graph.input) + len(graph.initializer)
    assert site in values


def test_what_nobody_reads_goes() -> None:
    model = finish(parse("a = Relu(x) b = Mul(a, s) y = Flatten(a)"))
    assert [n.op_type for n in model.graph] == ["Relu", "Flatten"]
    assert dict(model.graph.initializers) == {}


def test_provenance_and_types_in_between_are_dropped() -> None:
    model = parse("a = Relu(x) b = Mul(a, s) y = Flatten(b)")
    for holder in (model, model.graph, model.graph[0], value(model, "a"), model.graph.inputs[0]):
        holder.metadata_props["source"] = "a long story"
    model.graph[0].doc_string = model.graph.doc_string = "told at length"
    value(model, "a").shape, value(model, "a").type = ir.Shape([1, 4, 1, 1]), ir.TensorType(ir.DataType.FLOAT)
    proto = ir.to_proto(finish(model))
    assert b"story" not in proto.SerializeToString() and b"length" not in proto.SerializeToString()
    assert (proto.producer_name, proto.producer_version, proto.doc_string) == ("mixport", "", "")
    assert (proto.graph.name, len(proto.graph.value_info)) == ("model", 0)
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        4,
        1,
        1,
    ]


@pytest.mark.parametrize(("inits", "opset", "version"), [(WIDE, 21, 10), (NARROW, 25, 13)])
def test_two_bit_weights_need_a_newer_opset(inits: str, opset: int, version: int) -> None:
    model = finish(convolution(inits), sites=("stem",))
    assert (model.opset_imports[""], model.ir_version) == (opset, version)


def test_an_ir_version_is_no_higher_than_the_target_s() -> None:
    graph = TARGET.graph.model_copy(update={"ir_version_max": 12})
    target = TARGET.model_copy(update={"graph": graph})
    assert finish(convolution(NARROW), sites=("stem",), target=target).ir_version == 12


def test_an_opset_beyond_the_target_s_is_refused_with_a_hint() -> None:
    target = TARGET.model_copy(update={"graph": TARGET.graph.model_copy(update={"opset_max": 24})})
    with pytest.raises(TargetError, match="target ort-cpu: opset 25 needed, allowed up to 24") as caught:
        finish(convolution(NARROW), target=target)
    assert caught.value.hint == "choose wider weights"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("group = 1, dilations = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0]", set()),
        ('auto_pad = "NOTSET", strides = [1, 2]', {"strides"}),
        ('auto_pad = "VALID", pads = [0, 0, 0, 0]', {"auto_pad"}),
        ("dilations = [2, 2], group = 2", {"dilations", "group"}),
    ],
)
def test_attributes_that_say_the_default_go(given: str, left: set[str]) -> None:
    body = f"p = Conv <kernel_shape = [1, 1], {given}> (x, w) y = Flatten(p)"
    model = finish(parse(body, inits="float[1,4,1,1] w = {1, 1, 1, 1}"))
    assert set(model.graph[0].attributes) == {"kernel_shape", *left}


def test_the_default_of_another_operator_stays() -> None:
    model = finish(
        parse(
            "p = Elu <alpha = 1.0> (x) r = Flatten(p) y = Gemm <alpha = 1.0, beta = 0.5> (r, w)",
            inits="float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}",
        )
    )
    assert [set(n.attributes) for n in model.graph] == [{"alpha"}, set(), {"beta"}]
