"""Rules of a target, one by one: got and allowed stand in the reason, and a refusal says what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from mixport.records.errors import InvariantError, TargetError
from mixport.records.targets import Target
from mixport.validate.target_check import FAILS, FITS, check_against, require_fit
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

Save = Callable[..., Path]


def failing(model: onnx.ModelProto, target: Target) -> list[tuple[str, str]]:
    return [(one.where, one.why) for one in check_against(model, target) if one.what == FAILS]


def changed(target: Target, **parts: dict[str, Any]) -> Target:
    return target.model_copy(
        update={part: getattr(target, part).model_copy(update=fields) for part, fields in parts.items()}
    )


def test_a_fitting_rule_says_got_and_allowed(target: Target) -> None:
    found = {one.where: one for one in check_against(build_network().build("head_sum"), target)}
    assert {one.what for one in found.values()} == {FITS}
    assert found["opset"].why == "opset 21, allowed up to 26"
    assert found["IR version"].why == "IR 10, allowed up to 13"
    assert found["input input"].why == "shape [None, 3, 8, 8], allowed dynamic-batch"
    assert found["weight branch.weight"].why == "stored as int4, allowed int2, int4, int8"


def test_the_last_allowed_opset_and_ir_version_fit(target: Target) -> None:
    model = build_network().build("head_sum")
    model.opset_import[0].version, model.ir_version = target.graph.opset_max, target.graph.ir_version_max
    assert failing(model, target) == []
    model.opset_import[0].version += 1
    assert failing(model, target) == [("opset", "opset 27, allowed up to 26")]


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        (("N", 3, 8, 8), (True, False)),
        ((1, 3, 8, 8), (True, True)),
        (("N", 3, "H", 8), (False, False)),
        (("N", "C", 8, 8), (False, False)),
    ],
)
def test_only_the_batch_may_be_free(shape: tuple[Any, ...], fits: tuple[bool, bool], target: Target) -> None:
    model = build_network(shape=shape).build("head_sum")
    static = changed(target, graph={"shapes": "static"})
    assert tuple(not failing(model, one) for one in (target, static)) == fits


def test_a_custom_operator_is_named(target: Target) -> None:
    b = QdqBuilder()
    b.nodes.append(helper.make_node("Thing", ["input"], ["t"], domain="elsewhere", name="thing"))
    why = "elsewhere::Thing is a custom operator, allowed standard ones"
    assert ("node thing", why) in failing(b.build(b.qdq("t", "y", 0.1, 0)), target)


def test_one_scale_a_channel_is_too_many_for_a_target_of_one(target: Target) -> None:
    strict = changed(target, weights={"granularity": "per-tensor"})
    found = failing(build_network().build("head_sum"), strict)
    names = ("stem", "branch", "depthwise", "head")
    assert found == [
        (f"weight {name}.weight", "one scale a channel, allowed one scale a tensor") for name in names
    ]


def test_a_float_island_fits_with_its_reason(target: Target) -> None:
    found = {one.where: one for one in check_against(build_transformer().build("logits_sum"), target)}
    island = found["node softmax (Softmax)"]
    assert island.what == FITS and island.why.startswith("runs in float: Softmax is not bit-portable")


def test_a_file_that_fits_is_let_through(save: Save, target: Target) -> None:
    assert require_fit(save(build_network().build("head_sum")), target) is None


def test_wide_codes_alone_are_the_target_s_fault(save: Save, target: Target) -> None:
    narrow = changed(target, activations={"stream_bits": (8,)})
    path = save(build_transformer().build("logits_sum"))
    with pytest.raises(
        TargetError, match=r"site stream0: codes are int16, allowed uint8 \(1 more\)"
    ) as caught:
        require_fit(path, narrow)
    assert caught.value.hint is not None and "add 16" in caught.value.hint


def test_a_missing_operator_alone_is_the_target_s_fault(save: Save, target: Target) -> None:
    few = changed(target, operators={"integer": ("Conv", "Gemm", "GlobalAveragePool")})
    path = save(build_network().build("head_sum"))
    message = "node join: integer Add, allowed Conv, Gemm, GlobalAveragePool$"
    with pytest.raises(TargetError, match=message) as caught:
        require_fit(path, few)
    assert caught.value.hint is not None and "[operators] integer" in caught.value.hint


def test_anything_else_is_a_bug_of_ours(save: Save, target: Target) -> None:
    few = changed(
        target, operators={"integer": ("Conv", "Gemm", "GlobalAveragePool")}, graph={"opset_max": 20}
    )
    message = r"own target ort-cpu: opset: opset 21, allowed up to 20 \(1 more\)"
    with pytest.raises(InvariantError, match=message):
        require_fit(save(build_network().build("head_sum")), few)


def test_movement_of_bare_codes_is_told_where_it_has_to_be_a_unit(target: Target) -> None:
    """`build_network` flattens the codes of its pool; a table's constant is no movement."""
    own = changed(target, graph={"moves": "own-units"})
    model = build_network().build("head_sum")
    (found,) = failing(model, own)
    assert "movement of bare codes by Flatten" in found[1]
    assert failing(model, target) == []


def test_a_model_that_moves_bare_codes_is_refused_by_the_field(target: Target, save: Save) -> None:
    own = changed(target, graph={"moves": "own-units"})
    with pytest.raises(
        TargetError, match=r"graph.moves 'own-units' does not have what the model needs"
    ) as caught:
        require_fit(save(build_network().build("head_sum")), own)
    assert caught.value.hint and 'moves = "codes"' in caught.value.hint
