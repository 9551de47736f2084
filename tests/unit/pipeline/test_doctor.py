from __future__ import annotations

from pathlib import Path

import pytest

from mixport.pipeline import doctor
from mixport.pipeline.doctor import Diagnosis, examine


def found(cache: Path) -> dict[str, Diagnosis]:
    return {item.what: item for item in examine(cache=cache)}


def test_the_generator_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "generator_folder", lambda: tmp_path)
    missing = found(tmp_path)["generator"]
    assert (missing.status, missing.value) == ("warning", "no builtin one")
    assert "--calib images:DIR" in (missing.hint or "")
    (tmp_path / "model_index.json").write_bytes(b"{}")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights.safetensors").write_bytes(bytes(3 << 20))
    there = found(tmp_path)["generator"]
    assert (there.status, there.value, there.hint) == ("ok", "builtin, 3.0 MiB", None)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({}, "home/.cache/huggingface/hub"), ({"HF_HOME": "/a"}, "/a/hub"), ({"HF_HUB_CACHE": "/b"}, "/b")],
)
def test_where_the_hub_keeps_its_files(
    variables: dict[str, str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert found(tmp_path)["hub cache"].value == f"{tmp_path / folder} (empty)"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found(tmp_path)["hub cache"].note.startswith("offline (HF_HUB_OFFLINE)")


def test_a_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    monkeypatch.setattr(doctor, "_NVIDIA", version)
    assert found(tmp_path)["gpu"].value == "no NVIDIA driver"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54\nGCC version: x\n")
    assert found(tmp_path)["gpu"].value == "NVIDIA UNIX x86_64 Kernel Module  550.54"


def test_runtimes_that_are_missing_do_not_stop_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    one = found(tmp_path)["runtimes"]
    assert (one.status, one.value, one.hint) == ("ok", "native", None)
    assert "arm64, wasm, wasm-chromium, qnn-htp68, qnn-htp73 (mixport runtimes list)" in one.note
