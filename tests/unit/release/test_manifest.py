from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

import mixport
from mixport.release.manifest import Manifest


def test_the_contracts_names_are_there(records: Any) -> None:
    document = json.loads(records.manifest().text())
    assert document["schema_version"] == 1
    assert document["mixport_version"] == mixport.__version__
    assert set(document) >= {
        "model",
        "scheme",
        "target",
        "calibration",
        "sites",
        "metrics",
        "validation",
        "files",
        "environment",
        "reproduce",
    }
    assert set(document["model"]) == {"name", "source", "sha256"}
    assert document["scheme"] == "w2a4"
    assert set(document["target"]) >= {"name", "sha256"}
    assert set(document["calibration"]) >= {"method", "recipe_key", "content_sha256", "images", "generator"}
    assert set(document["metrics"]) >= {
        "top1_float",
        "top1_quantized",
        "agreement",
        "sqnr_db",
        "size_bytes",
        "size_ratio",
    }
    validation = document["validation"]
    assert set(validation) >= {"verdict", "claim", "session_policy", "runtimes", "proofs", "float_islands"}
    assert validation["session_policy"] == {
        "optimization_level": "all",
        "threads": 1,
        "config": {"session.x": "1"},
    }
    assert validation["runtimes"][0] == {
        "name": "native",
        "version": "1.31.1",
        "cpu": "x64",
        "tensors": 3,
        "values": 3000,
        "mismatches": 0,
    }
    for site in document["sites"]:
        assert set(site) >= {"name", "op", "weight_bits", "activation_bits", "weight_storage", "reason"}


def test_a_weights_row_shows_what_its_layer_reads(records: Any) -> None:
    rows = {site.name: site for site in records.manifest().sites if site.kind == "weight"}
    assert {
        name: (site.weight_bits, site.activation_bits, site.weight_storage) for name, site in rows.items()
    } == {
        "conv": (8, 8, "int8"),
        "fc": (2, 4, "int2"),
        "head": (8, None, "int8"),
    }


def test_an_activations_row_shows_its_codes(records: Any) -> None:
    (add,) = [site for site in records.manifest().sites if site.name == "add"]
    assert (add.storage, add.scale, add.zero_point, add.qmin, add.qmax) == ("uint8", 0.05, 0, 0, 15)
    assert (add.role, add.behind_island, add.sqnr_db) == ("carrier", True, 8.25)


def test_values_that_json_cannot_hold_become_null(records: Any) -> None:
    assert [one.got for one in records.manifest().validation.divergences] == [4.0, None]


def test_a_manifest_survives_its_file_and_keeps_unknown_fields(records: Any) -> None:
    manifest = records.manifest()
    assert Manifest.model_validate_json(manifest.text()) == manifest
    document = {**manifest.document(), "new_field": {"a": 1}}
    assert Manifest.model_validate(document).document()["new_field"] == {"a": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [("schema_version", 2), ("sites", None), ("validation", {}), ("metrics", {"agreement": float("nan")})],
)
def test_other_documents_are_refused(records: Any, name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({**records.manifest().document(), name: value})


def test_the_manifest_says_what_was_learned(records: Any) -> None:
    document = json.loads(records.manifest().text())
    assert document["reconstruction"] == {
        "preset": "mixport",
        "iters": 2000,
        "images": 32,
        "seed": 3,
        "device": "cpu",
        "threads": 2,
        "units": [
            {
                "name": "body <b>",
                "layers": ["fc"],
                "sites": ["conv.relu"],
                "error_before": 0.5,
                "error_after": 0.125,
                "batch": 32,
                "dropped": 0.25,
            },
            {
                "name": "late",
                "layers": [],
                "sites": [],
                "error_before": None,
                "error_after": None,
                "batch": 4,
                "dropped": 0.25,
            },
        ],
        "mlps": [
            {
                "name": "mlp <b>",
                "layers": ["norm", "fc1", "fc2"],
                "error_before": 0.25,
                "error_after": 0.0625,
            },
            {"name": "wild", "layers": [], "error_before": 0.75, "error_after": None},
        ],
        "mlp_iters": 8000,
    }
    nearest = replace(records, quantized=replace(records.quantized, reconstruction=None))
    assert json.loads(nearest.manifest().text())["reconstruction"] is None


def test_warnings_and_what_single_tensors_cost(records: Any) -> None:
    document = records.manifest().document()
    assert document["warnings"] == [{"about": "output", "message": "far & <away>", "hint": "--scheme w8a8"}]
    assert {site["name"]: site["sqnr_db"] for site in document["sites"] if site["kind"] == "weight"} == {
        "conv": None,
        "fc": 12.5,
        "head": None,
    }
    assert document["metrics"]["reasons"] == {}
