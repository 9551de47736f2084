from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mixport.records.errors import BadOptionError
from mixport.release.evaluate import GATE_METRICS, Gate, check_gates, parse_gate

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
GATES = st.builds(
    Gate,
    metric=st.sampled_from(sorted(GATE_METRICS)),
    operator=st.sampled_from(["<=", ">=", "==", "<", ">"]),
    bound=NUMBERS,
)


@given(GATES)
def test_a_gate_survives_its_own_spelling(gate: Gate) -> None:
    assert parse_gate(gate.text) == gate


@given(GATES, st.sampled_from(["", " ", "  "]))
def test_spaces_do_not_count(gate: Gate, space: str) -> None:
    assert parse_gate(f"{space}{gate.metric}{space}{gate.operator}{space}{gate.bound!r}{space}") == gate


@given(st.text())
def test_any_text_is_a_gate_or_explained(text: str) -> None:
    try:
        gate = parse_gate(text)
    except BadOptionError as error:
        assert repr(text) in str(error)
    else:
        assert parse_gate(gate.text) == gate


@given(st.sampled_from(sorted(GATE_METRICS)), NUMBERS, NUMBERS)
def test_operators_agree_with_each_other(metric: str, bound: float, value: float) -> None:
    passed = {
        operator: check_gates([Gate(metric=metric, operator=operator, bound=bound)], {metric: value})[
            0
        ].passed
        for operator in ("<=", ">=", "==", "<", ">")
    }
    assert passed["<="] == (not passed[">"]) == (passed["<"] or passed["=="])
    assert passed[">="] == (not passed["<"]) == (passed[">"] or passed["=="])
    assert check_gates([Gate(metric=metric, operator="==", bound=value)], {metric: value})[0].passed


@given(GATES)
def test_nothing_measured_never_passes(gate: Gate) -> None:
    (result,) = check_gates([gate], {gate.metric: None})
    assert not result.passed
    assert result.hint
