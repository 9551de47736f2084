from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mixport.errors import BadInputError
from mixport.form_evidence import (
    SHIPPED,
    ConformanceResult,
    FormResult,
    form_evidence,
    portable_forms,
    read_result,
    shipped_results,
    write_result,
)
from mixport.runtime_records import RuntimeInfo
from mixport.targets import load_target


def result(name: str, **exact: bool) -> ConformanceResult:
    forms = {
        form: FormResult(cases=1, values=10, mismatches=0 if good else 3, exact=good, outputs_sha256="ab") for form, good in exact.items()
    }
    return ConformanceResult(
        mixport="1",
        name=name,
        runtime=RuntimeInfo(name="onnxruntime", version="1.31.1", cpu="x"),
        session=load_target("ort-cpu").session,
        kit_sha256="12",
        forms=forms,
    )


def test_a_form_is_portable_where_every_runtime_is_exact() -> None:
    assert portable_forms([result("a", add=True, mul=True), result("b", add=True, mul=False)]) == {"add"}


def test_a_form_that_one_result_lacks_is_not_portable() -> None:
    assert portable_forms([result("a", add=True, mul=True), result("b", mul=True)]) == {"mul"}


def test_no_results_prove_nothing() -> None:
    with pytest.raises(BadInputError, match="no conformance results"):
        portable_forms([])


def test_results_of_different_kits_do_not_mix() -> None:
    with pytest.raises(BadInputError, match=r"different kits: a .*, b"):
        portable_forms([result("a", add=True), replace(result("b", add=True), kit_sha256="34")])


def test_evidence_names_who_differs() -> None:
    found = form_evidence("add", [result("a", add=True), result("b", add=False)])
    assert (found.exact, found.values, found.differs, found.equal) == (False, 20, ("b 1.31.1",), ("a 1.31.1",))
    assert found.sentence() == "add: differs on b 1.31.1"


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


def test_the_shipped_results_name_four_runtimes_and_their_versions() -> None:
    found = shipped_results()
    assert tuple(one.name for one in found) == SHIPPED == ("native", "x64-avx2", "wasm", "arm64")
    assert all(one.runtime.version and one.runtime.cpu for one in found)
    assert len({one.kit_sha256 for one in found}) == 1
    assert len({frozenset(one.forms) for one in found}) == 1
    cpus = {one.name: one.runtime.cpu.split() for one in found}
    assert {"avx512_vnni", "avx_vnni"} & set(cpus["native"])
    assert "avx2" in cpus["x64-avx2"]
    assert not {"avx512_vnni", "avx_vnni"} & set(cpus["x64-avx2"])
    assert cpus["arm64"][0] == "aarch64"


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
