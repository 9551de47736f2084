from __future__ import annotations

import math

import numpy as np
import pytest

from mixport.records.errors import BadInputError, BadOptionError
from mixport.records.output_quality import SQNR_LIMIT_DB, agreement, sqnr_db
from mixport.release.evaluate import (
    GATE_METRICS,
    Gate,
    Metrics,
    check_gates,
    gate_values,
    measure,
    parse_gate,
    top1,
)

LOGITS = np.array([[3, 1, 2], [0, 5, 1], [1, 2, 9], [4, 4, 0]], np.float32)


def test_top1_is_in_percent_and_ties_count_for_the_lower_index() -> None:
    assert top1(LOGITS, np.array([0, 1, 2, 0])) == 100.0
    assert top1(LOGITS, np.array([0, 1, 0, 1])) == 50.0


def test_agreement_is_a_share() -> None:
    other = LOGITS.copy()
    other[0] = [0, 0, 1]
    assert agreement(LOGITS, LOGITS) == 1.0
    assert agreement(LOGITS, other) == 0.75


def test_sqnr_is_of_what_varies_over_images() -> None:
    reference = np.array([[10.0, 0.0], [-10.0, 20.0]], np.float32)  # signal 100 + 100 + 100 + 100
    assert sqnr_db(reference, reference + 1) == pytest.approx(20.0)  # noise 4
    assert sqnr_db(reference, reference) == SQNR_LIMIT_DB
    close = np.nextafter(reference, np.float32(np.inf), dtype=np.float32)
    assert 100 < (sqnr_db(reference, close) or 0.0) < SQNR_LIMIT_DB / 2


def test_a_constant_offset_is_no_signal() -> None:
    """One logit of 100,000 on every image once lifted 20 dB to 94."""
    reference = np.array([[10.0, 0.0, 1e5], [-10.0, 20.0, 1e5]], np.float32)
    wrong = np.array([1.0, 1.0, 0.0], np.float32)
    assert sqnr_db(reference, reference + wrong) == pytest.approx(20.0)
    shifted = sqnr_db(reference, reference + np.array([0, 0, 10], np.float32))
    assert shifted == pytest.approx(
        10 * math.log10(400 / 200)
    )  # an offset of the quantised model is noise, all of it


@pytest.mark.parametrize(
    "outputs", [np.zeros((3, 2), np.float32), np.full((3, 2), 7.5, np.float32), LOGITS[:1]]
)
def test_outputs_that_do_not_vary_have_neither_sqnr_nor_agreement(outputs: np.ndarray) -> None:
    """All-zero weights once had 300 dB, and met every gate."""
    found = measure(
        float_logits=outputs, quantized_logits=outputs, labels=None, size_bytes=25, float_bytes=100
    )
    assert (found.sqnr_db, found.agreement) == (None, None)
    gates = [parse_gate("sqnr_db>=20"), parse_gate("agreement>=0.9")]
    sqnr, same = check_gates(gates, gate_values(found, mismatches=0), reasons=found.reasons)
    assert not sqnr.passed
    assert not same.passed
    assert f"are the same on all {len(outputs)} images" in sqnr.explanation


def test_one_output_value_names_no_class() -> None:
    outputs = np.array([[1.0], [2.0], [-1.0]], np.float32)
    found = measure(
        float_logits=outputs,
        quantized_logits=outputs,
        labels=np.zeros(3, int),
        size_bytes=25,
        float_bytes=100,
    )
    assert (found.agreement, found.top1_float, found.top1_quantized) == (None, None, None)
    assert found.sqnr_db == SQNR_LIMIT_DB
    assert found.reasons.keys() == {"agreement", "top1_float", "top1_quantized"}
    (drop,) = check_gates(
        [parse_gate("top1_drop<=1")], gate_values(found, mismatches=0), reasons=found.reasons
    )
    assert "one output value" in drop.explanation


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top1(LOGITS, np.array([0, 1])), r"labels have shape \[2\], allowed \[4\]"),
        (lambda: top1(LOGITS, np.array([0, 1, 2, 3])), "labels go from 0 to 3, the model has 3 classes"),
        (lambda: top1(LOGITS * np.float32(np.nan), np.zeros(4, int)), "NaN"),
        (lambda: top1(LOGITS[:0], np.zeros(0, int)), "both above 0"),
        (lambda: agreement(LOGITS, LOGITS[:2]), "allowed equal ones"),
        (lambda: sqnr_db(LOGITS, LOGITS[:2]), "allowed equal ones"),
        (lambda: sqnr_db(LOGITS, LOGITS + np.float32(np.inf)), "NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(BadInputError, match=message):
        call()


def test_measure_leaves_out_what_cannot_be_measured() -> None:
    nothing = measure(float_logits=None, quantized_logits=None, labels=None, size_bytes=25, float_bytes=100)
    assert nothing == Metrics(
        top1_float=None,
        top1_quantized=None,
        agreement=None,
        sqnr_db=None,
        size_bytes=25,
        size_ratio=0.25,
        float_bytes=100,
        images=0,
    )
    unlabelled = measure(
        float_logits=LOGITS, quantized_logits=LOGITS, labels=None, size_bytes=25, float_bytes=100
    )
    assert (unlabelled.top1_float, unlabelled.agreement, unlabelled.sqnr_db, unlabelled.images) == (
        None,
        1.0,
        SQNR_LIMIT_DB,
        4,
    )
    full = measure(
        float_logits=LOGITS,
        quantized_logits=LOGITS[:, ::-1],
        labels=np.array([0, 1, 2, 0]),
        size_bytes=25,
        float_bytes=100,
    )
    assert (full.top1_float, full.top1_quantized, full.top1_drop) == (100.0, 25.0, 75.0)


def metrics(top1_float: float | None, top1_quantized: float | None) -> Metrics:
    return Metrics(
        top1_float=top1_float,
        top1_quantized=top1_quantized,
        agreement=0.98,
        sqnr_db=20.0,
        size_bytes=20,
        size_ratio=0.2,
        float_bytes=100,
        images=10,
    )


def test_a_drop_of_exactly_the_bound_meets_it_in_spite_of_binary_fractions() -> None:
    assert 91.9 - 91.8 > 0.1
    values = gate_values(metrics(91.9, 91.8), mismatches=0)
    assert all(result.passed for result in check_gates([parse_gate("top1_drop<=0.1")], values))


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("top1_drop<=1.0", True),
        ("top1_drop < 0.5", False),
        ("size_ratio<=0.2", True),
        ("size_ratio<0.2", False),
        ("mismatches==0", True),
        ("agreement>=0.98", True),
        ("agreement>0.98", False),
        ("sqnr_db>=2e1", True),
        (" size_bytes <= 20 ", True),
        ("top1_quantized>=90", True),
        ("top1_float==91.5", True),
    ],
)
def test_gates(text: str, passed: bool) -> None:
    (result,) = check_gates([parse_gate(text)], gate_values(metrics(91.5, 91.0), mismatches=0))
    assert result.passed is passed
    assert (result.hint is None) is passed
    assert result.value is not None


def test_a_gate_on_something_not_measured_fails_with_the_option_to_type() -> None:
    values = gate_values(metrics(None, None), mismatches=None)
    drop, mismatches = check_gates([parse_gate("top1_drop<=100"), parse_gate("mismatches>=0")], values)
    assert (drop.passed, drop.value, drop.explanation) == (False, None, "top1_drop was not measured")
    assert drop.hint is not None
    assert "--eval" in drop.hint
    assert not mismatches.passed
    assert not check_gates([Gate(metric="sqnr_db", operator=">=", bound=0.0)], {"sqnr_db": math.nan})[
        0
    ].passed
    assert not check_gates([Gate(metric="sqnr_db", operator=">=", bound=0.0)], {})[0].passed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "top1_drop",
        "top1_drop<=",
        "<=1",
        "top1_drop=1",
        "top1_drop=<1",
        "top1_drop<=1%",
        "top1_drop<=nan",
        "a<1<2",
        "top1_drop!=1",
        "top1_drop<=inf",
    ],
)
def test_texts_that_are_no_gate(text: str) -> None:
    with pytest.raises(BadOptionError, match="allowed METRIC OPERATOR NUMBER") as caught:
        parse_gate(text)
    assert caught.value.hint


def test_unknown_metrics_list_the_known_ones() -> None:
    with pytest.raises(BadOptionError, match=r"unknown metric accuracy, known: top1_drop, .*mismatches"):
        parse_gate("accuracy>=1")


def test_every_metric_of_a_gate_has_a_value() -> None:
    assert gate_values(metrics(1.0, 1.0), mismatches=0).keys() == GATE_METRICS.keys()
