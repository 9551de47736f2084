"""Sessions: policy, batches, code outputs, and models that the runtime refuses."""

from __future__ import annotations

import numpy as np
import pytest

from mixport.records.errors import BadInputError
from mixport.records.targets import SessionRules, Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.session import (
    batches,
    open_session,
    run_codes,
    runtime_info,
    static_batch,
    with_code_outputs,
)
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network

f32 = np.float32


def test_batching_does_not_change_codes(target: Target) -> None:
    model = build_network().build("head_sum")
    x = np.random.default_rng(0).normal(size=(7, 3, 8, 8)).astype(f32)
    sites = Interpreter(model).sites
    whole, cut = (run_codes(model, x, sites, target.session, batch=batch) for batch in (7, 3))
    assert whole.keys() == cut.keys() == {*sites, "output"}
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name])


def test_a_static_batch_runs_one_by_one(target: Target) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(f32)
    fixed, free = (build_network(shape=(size, 3, 8, 8)).build("head_sum") for size in (1, "N"))
    assert static_batch(fixed) == 1 and static_batch(free) is None
    a, b = (run_codes(model, x, ["join"], target.session) for model in (fixed, free))
    np.testing.assert_array_equal(a["join"], b["join"])


def test_images_that_do_not_fill_a_fixed_batch_are_refused() -> None:
    with pytest.raises(BadInputError, match="5 images do not fill batches of 2"):
        list(batches(np.zeros((5, 3, 8, 8), f32), batch=32, fixed=2))


def test_int16_codes_come_back_as_int16(target: Target) -> None:
    b = QdqBuilder()
    model = b.build(b.qdq("input", "stream", 0.001, 0, dtype="int16"))
    codes = run_codes(model, np.full((1, 3, 8, 8), -1.5, f32), ["stream"], target.session)["stream"]
    assert codes.dtype == np.int16 and (codes == -1500).all()


def test_a_name_that_is_no_code_tensor_is_refused() -> None:
    with pytest.raises(BadInputError, match="head_sum is not a code tensor"):
        with_code_outputs(build_network().build("head_sum"), ["head_sum"])


def test_a_model_that_the_runtime_refuses_is_the_users_error(target: Target) -> None:
    model = build_network().build("head_sum")
    model.ir_version = 99
    with pytest.raises(BadInputError, match="refuses the model"):
        open_session(model, policy=target.session)


def test_the_policy_reaches_the_session() -> None:
    policy = SessionRules(optimization_level="basic", threads=2, config={"session.qdqisint8allowed": "1"})
    options = open_session(build_network().build("head_sum"), policy=policy).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.get_session_config_entry("session.qdqisint8allowed") == "1"


def test_runtime_info_names_version_and_machine() -> None:
    info = runtime_info()
    assert info.name == "onnxruntime" and info.version.count(".") == 2 and info.cpu
