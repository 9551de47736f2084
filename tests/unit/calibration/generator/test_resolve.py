from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from mixport import builtin
from mixport.calibration.generator import hub
from mixport.calibration.generator.resolve import KNOWN, Defaults, is_remote, resolve_generator
from mixport.records.errors import BadInputError


def test_a_local_folder(tiny_pipeline: Path) -> None:
    found = resolve_generator(str(tiny_pipeline))
    assert (found.name, found.folder.path, found.defaults) == (str(tiny_pipeline), tiny_pipeline, Defaults())
    assert not is_remote(str(tiny_pipeline))


def test_a_copy_of_a_known_model_is_known(tmp_path: Path, tiny_pipeline: Path) -> None:
    (tmp_path / "SD-Turbo").symlink_to(tiny_pipeline)
    assert resolve_generator(str(tmp_path / "SD-Turbo")).defaults == KNOWN["sd-turbo"]
    assert KNOWN["sd-turbo"].guidance == 0.0


def test_the_builtin_one_is_a_folder_like_others(
    monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path
) -> None:
    monkeypatch.setattr(builtin, "generator_folder", lambda: tiny_pipeline)
    found = resolve_generator("builtin")
    assert (found.name, found.folder.path, found.defaults) == ("builtin", tiny_pipeline, KNOWN["builtin"])


def test_an_installation_without_the_builtin_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builtin, "generator_folder", lambda: tmp_path)
    with pytest.raises(BadInputError, match="lacks the builtin generator"):
        resolve_generator("builtin")


@pytest.mark.parametrize(
    "source",
    [
        "nothing",
        "./nothing",
        "/nowhere/at/all",
        "a/b/c",
        "",
        "~/nothing here",
        "~nobody-of-that-name/x",
        "a" * 300,
    ],
)
def test_unknown_generators(source: str) -> None:
    with pytest.raises(BadInputError, match="unknown generator"):
        resolve_generator(source)


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInputError, match="is a file") as caught:
        resolve_generator(str(tmp_path / "model.safetensors"))
    assert "from_single_file" in str(caught.value.hint)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no diffusers pipeline"):
        resolve_generator(str(tmp_path))


def test_a_hub_id_is_checked_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path
) -> None:
    asked: list[tuple[object, ...]] = []

    def index(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(tiny_pipeline / name)

    def download(repository: str, *, revision: str | None) -> Path:
        asked.append((repository, revision))
        return tiny_pipeline

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", index)
    monkeypatch.setattr(hub, "_download", download)
    found = resolve_generator("someone/sd-turbo", revision="v1")
    assert is_remote("someone/sd-turbo")
    assert (found.name, found.defaults) == ("someone/sd-turbo", KNOWN["sd-turbo"])
    assert asked == [("someone/sd-turbo", "model_index.json", "v1"), ("someone/sd-turbo", "v1")]


def test_a_hub_id_with_foreign_code_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": ["mine", "Mine"]}')
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model_index.json")
    )
    monkeypatch.setattr(hub, "_download", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(BadInputError, match="custom code is never run"):
        resolve_generator("someone/something")


def response(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (hub_errors.LocalEntryNotFoundError("no connection"), "cannot be reached: no connection"),
        (hub_errors.OfflineModeIsEnabled("offline"), "cannot be reached: offline"),
        (ConnectionError("refused"), "cannot be reached: refused"),
        (RuntimeError("something of a network library"), "cannot be reached: something"),
        (
            hub_errors.RepositoryNotFoundError("404", response=response(404)),
            "no generator someone/thing at revision v1 on the hub",
        ),
        (hub_errors.GatedRepoError("403", response=response(403)), "asks for a login"),
        (hub_errors.RevisionNotFoundError("404", response=response(404)), "has no revision v1"),
        (hub_errors.EntryNotFoundError("404"), "no diffusers pipeline"),
        (OSError("Could not find the necessary `safetensors` weights"), "no safetensors weights"),
    ],
)
def test_what_can_go_wrong_on_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception, what: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(BadInputError, match=what) as caught:
        resolve_generator("someone/thing", revision="v1")
    assert caught.value.hint
    if "cannot be reached" in what:
        assert "--generator DIR" in caught.value.hint
