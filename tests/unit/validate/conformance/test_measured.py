from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from mixport.records.errors import BadInputError
from mixport.records.runtime import RuntimeInfo
from mixport.records.targets import load_target
from mixport.validate.conformance.measured import (
    SHIPPED,
    ConformanceResult,
    FormResult,
    exact_forms,
    form_evidence,
    read_result,
    read_results,
    shipped_results,
    unmeasured,
    write_result,
)
from mixport.validate.runtimes import pins
from tests.benchmarks.conformance_table import MEASURED


def result(name: str, version: str = "1.31.1", **exact: bool) -> ConformanceResult:
    forms = {
        form: FormResult(cases=1, values=10, mismatches=0 if good else 3, exact=good, outputs_sha256="ab")
        for form, good in exact.items()
    }
    return ConformanceResult(
        mixport="1",
        name=name,
        runtime=RuntimeInfo(name="onnxruntime", version=version, cpu="x"),
        session=load_target("ort-cpu").session,
        kit_sha256="12",
        forms=forms,
    )


def test_a_form_is_portable_where_every_runtime_is_exact() -> None:
    assert exact_forms([result("a", add=True, mul=True), result("b", add=True, mul=False)]) == {"add"}


def test_a_form_that_one_result_lacks_is_not_portable() -> None:
    assert exact_forms([result("a", add=True, mul=True), result("b", mul=True)]) == {"mul"}


def test_no_results_prove_nothing() -> None:
    with pytest.raises(BadInputError, match="no conformance results"):
        exact_forms([])


def test_results_of_different_kits_do_not_mix() -> None:
    with pytest.raises(BadInputError, match=r"different kits: a .*, b"):
        exact_forms([result("a", add=True), replace(result("b", add=True), kit_sha256="34")])


def test_evidence_names_who_differs() -> None:
    found = form_evidence("add", [result("a", add=True), result("b", add=False)])
    assert (found.exact, found.values, found.differs, found.equal) == (
        False,
        20,
        ("b 1.31.1",),
        ("a 1.31.1",),
    )
    assert found.sentence() == "add: differs on b 1.31.1"


def test_a_form_that_one_version_computes_otherwise_is_not_portable() -> None:
    """A portable file is for every version that may run it, not for the one that is here."""
    results = [
        result("a", "1.32.0", add=True, mul=True),
        result("a", add=True, mul=False),
        result("b", add=True, mul=True),
    ]
    assert exact_forms(results) == {"add"}
    found = form_evidence("mul", results)
    assert (found.exact, found.differs, found.equal) == (False, ("a 1.31.1",), ("a 1.32.0", "b 1.31.1"))
    assert form_evidence("add", results).sentence() == "add: exact on a 1.32.0, 1.31.1; b 1.31.1; 30 values"


def test_a_folder_of_results_is_read_in_order_and_newest_first(tmp_path: Path) -> None:
    every = [
        result(name, version, add=True)
        for name in reversed(SHIPPED)
        for version in ("1.9.2", "1.31.1", "1.31.0")
    ]
    board = result("ssh:board", add=False)
    for one in (*every, board):
        write_result(tmp_path / one.file_name, one)
    assert (tmp_path / "native-1.9.2.json").is_file() and (tmp_path / "ssh-board-1.31.1.json").is_file()
    found = [(one.name, one.runtime.version) for one in read_results(tmp_path)]
    assert found == [(name, version) for name in SHIPPED for version in ("1.31.1", "1.31.0", "1.9.2")]
    for path in tmp_path.glob("wasm-*.json"):
        path.unlink()
    with pytest.raises(BadInputError, match="no conformance result of wasm"):
        read_results(tmp_path)


def test_a_version_that_ran_and_has_no_result_is_named_with_those_that_have_one() -> None:
    results = [
        result("native", "1.32.0", add=True),
        result("native", add=True),
        result("arm64", "1.9.0", add=True),
    ]
    ran = [
        ("onnxruntime", "1.33.0"),
        ("onnxruntime", "1.31.1"),
        ("torch", "2.9.0"),
        ("onnxruntime", "1.33.0"),
    ]
    assert unmeasured(ran, results) == ("onnxruntime 1.33.0 (measured: 1.9.0, 1.31.1, 1.32.0)",)
    assert unmeasured([("onnxruntime", pins.ONNXRUNTIME), ("onnxruntime-web", pins.ONNXRUNTIME_WEB)]) == ()


def test_evidence_of_a_form_nobody_measured() -> None:
    with pytest.raises(BadInputError, match="no result for form nix on native"):
        form_evidence("nix")


def test_results_read_back_as_written(tmp_path: Path) -> None:
    one = result("a", add=True, mul=False)
    write_result(tmp_path / "a.json", one)
    assert read_result(tmp_path / "a.json") == one
    before = (tmp_path / "a.json").read_bytes()
    write_result(tmp_path / "a.json", read_result(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize("damage", ["{}", "not json", '{"schema_version": 2}'])
def test_a_damaged_result_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.json").write_text(damage)
    with pytest.raises(BadInputError, match="is damaged at"):
        read_result(tmp_path / "a.json")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_the_shipped_results_are_of_four_runtimes_and_every_pinned_version() -> None:
    found = shipped_results()
    assert (
        tuple(dict.fromkeys(one.name for one in found)) == SHIPPED == ("native", "x64-avx2", "wasm", "arm64")
    )
    assert {f"{one.name}@{one.runtime.version}" for one in found} == set(MEASURED)
    assert len(found) == len(MEASURED) == 7
    assert all(one.runtime.version and one.runtime.cpu for one in found)
    assert len({one.kit_sha256 for one in found}) == 1
    assert len({frozenset(one.forms) for one in found}) == 1
    for one in found:
        features = set(one.runtime.cpu.split())
        assert bool({"avx512_vnni", "avx_vnni"} & features) == (one.name == "native")
        assert ("avx2" in features) == (one.name in ("native", "x64-avx2"))
        assert ("aarch64" in features) == (one.name == "arm64")


def test_the_oldest_version_with_results_is_the_oldest_that_installs() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    (wanted,) = (one for one in project["dependencies"] if one.startswith("onnxruntime"))
    oldest = min(
        (pins.ONNXRUNTIME, *pins.OLDER_ONNXRUNTIME),
        key=lambda version: [int(part) for part in version.split(".")],
    )
    assert wanted == f"onnxruntime>={oldest.rpartition('.')[0]}"


def test_exactness_follows_from_the_counts() -> None:
    """No verdict in the files was written by hand."""
    for one in shipped_results():
        for form in one.forms.values():
            assert form.exact == (form.mismatches == 0 and form.refused == 0)
            assert (form.first is None) == (form.mismatches == 0)
            assert form.values > 0


def test_equal_hashes_are_equal_verdicts() -> None:
    results = shipped_results()
    for name in results[0].forms:
        verdicts = {(one.forms[name].outputs_sha256, one.forms[name].mismatches) for one in results}
        assert len(verdicts) == len({sha256 for sha256, _ in verdicts}), name
        if all(one.forms[name].exact for one in results):
            assert len(verdicts) == 1, name


def test_the_document_is_plain_json() -> None:
    document = shipped_results()[0].document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
