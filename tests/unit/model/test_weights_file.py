from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mixport.model.float_model import load_model
from mixport.model.load_state import load_into
from mixport.model.programs.program_file import load_program
from mixport.model.weights_file import read_state_dict
from mixport.records.errors import BadInputError, UnsupportedModelError


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.marker,))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_a_state_dict_may_lack_counters_only(tmp_path: Path) -> None:
    state = {k: v for k, v in small().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    load_into(small(), read_state_dict(tmp_path / "w.safetensors").tensors, source="w")
    state.pop("0.bias")
    with pytest.raises(BadInputError, match=r"1 missing \['0.bias'\]"):
        load_into(small(), state, source="w")


def test_shapes_that_differ_are_named() -> None:
    state = small().state_dict()
    state["0.weight"] = torch.zeros(5, 3, 3, 3)
    with pytest.raises(
        BadInputError, match=r"0.weight has shape \(5, 3, 3, 3\), the model expects \(4, 3, 3, 3\)"
    ):
        load_into(small(), state, source="w")


def test_nan_is_named() -> None:
    state = small().state_dict()
    state["0.bias"][1] = float("nan")
    with pytest.raises(BadInputError, match=r"0\.bias holds 1 values that are NaN"):
        load_into(small(), state, source="w")


class Shared(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("kept", ["first.weight", "second.weight"])
def test_a_shared_tensor_may_be_stored_once(kept: str) -> None:
    state = {name: torch.full_like(value, 0.25) for name, value in Shared().state_dict().items()}
    state.pop({"first.weight": "second.weight", "second.weight": "first.weight"}[kept])
    model = Shared()
    (note,) = load_into(model, state, source="w")
    assert "taken from their other name" in note.what
    assert all(bool((value == 0.25).all()) for value in model.state_dict().values())


def test_a_shared_tensor_with_two_values_is_refused() -> None:
    state = {name: value.clone() for name, value in Shared().state_dict().items()}
    state["second.weight"] += 1
    with pytest.raises(
        BadInputError,
        match=r"first.weight and second.weight are one tensor in the model, the file has two values",
    ):
        load_into(Shared(), state, source="w")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str, file: str) -> None:
    state = {prefix + name: torch.ones_like(value) for name, value in small().state_dict().items()}
    (torch.save if file.endswith("pth") else save_file)(state, tmp_path / file)
    model = small()
    (note,) = load_into(model, read_state_dict(tmp_path / file).tensors, source="w")
    assert "taken off" in note.what
    assert all(bool((value == 1).all()) for value in model.state_dict().values())


def test_a_model_may_have_a_module_called_module() -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    assert (
        load_into(
            model, {name: torch.ones_like(value) for name, value in model.state_dict().items()}, source="w"
        )
        == ()
    )
    assert bool((model.module.weight == 1).all())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_codes_are_no_weights(dtype: torch.dtype) -> None:
    state = small().state_dict()
    state["0.weight"] = torch.ones(4, 3, 3, 3).to(dtype)
    allowed = "allowed float32, float16, bfloat16, float64"
    with pytest.raises(
        BadInputError, match=rf"0\.weight is {str(dtype).removeprefix('torch.')}, {allowed}"
    ) as caught:
        load_into(small(), state, source="w")
    assert "scales" in str(caught.value.hint)


def test_counters_may_be_written_as_floats() -> None:
    state = {name: value.half() for name, value in small().state_dict().items()}
    load_into(small(), state, source="w")
    state["1.num_batches_tracked"] = torch.tensor(0.5)
    with pytest.raises(BadInputError, match=r"1.num_batches_tracked is float32, allowed whole numbers"):
        load_into(small(), state, source="w")


@pytest.mark.parametrize(
    ("entries", "taken"),
    [
        (["state_dict", "state_dict_ema"], "state_dict_ema"),
        (["model", "model_ema"], "model_ema"),
        (["model"], "model"),
        (["state_dict_ema"], "state_dict_ema"),
    ],
)
def test_the_average_is_taken_from_a_checkpoint_and_named(
    tmp_path: Path, entries: list[str], taken: str
) -> None:
    weights = {name: {"w": torch.tensor([float(place)])} for place, name in enumerate(entries)}
    torch.save({**weights, "epoch": 3}, tmp_path / "c.pth")
    state = read_state_dict(tmp_path / "c.pth")
    assert float(state.tensors["w"]) == entries.index(taken)
    assert [note.what for note in state.notes] == ([f"{taken} taken"] if len(entries) > 1 else [])


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(small().state_dict(), path)
    else:
        save_file(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInputError, match="damaged"):
        read_state_dict(path)


def test_a_pickle_that_would_run_code_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"w": Evil(marker)}, tmp_path / "w.pth")
    with pytest.raises(BadInputError, match="would run code"):
        read_state_dict(tmp_path / "w.pth")
    assert not marker.exists()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(small().eval(), (torch.zeros(1, 3, 8, 8),)), path)
    return path


def rewrite(path: Path, member: str, change: object) -> None:
    """Replace the bytes of the one member whose name ends with `member`."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in content if name.endswith(member)]
    assert callable(change)
    content[name] = change(content[name])
    with zipfile.ZipFile(path, "w") as archive:
        for key, data in content.items():
            archive.writestr(key, data)


def test_a_plain_program_loads(program: Path) -> None:
    loaded = load_program(program)
    assert loaded.size == (8, 8)
    assert load_model(str(program)).input_shape == (1, 3, 8, 8)


def test_a_program_whose_example_inputs_run_code_is_refused(program: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    rewrite(program, "sample_inputs/model.pt", lambda _: pickle.dumps(Evil(marker)))
    with pytest.raises(BadInputError, match=r"refused|damaged"):
        load_program(program)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b"torch.ops.aten.conv2d.default", b"torch.relu", "calls 'torch.relu'"),
        (
            b'{"as_int": 4}',
            b'{"as_expr": {"expr_str": "__import__(1)", "hint": {"as_int": 4}}}',
            "shape expression",
        ),
    ],
    ids=["operator", "expression"],
)
def test_a_program_that_names_foreign_code_is_refused(
    program: Path, old: bytes, new: bytes, what: str
) -> None:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    rewrite(program, "models/model.json", change)
    with pytest.raises(BadInputError, match=what):
        load_program(program)


def test_pickled_weights_in_a_program_are_refused(program: Path) -> None:
    rewrite(
        program,
        "model_weights_config.json",
        lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true'),
    )
    with pytest.raises(BadInputError, match="pickled tensors"):
        load_program(program)


def test_a_program_with_other_inputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 4), (torch.zeros(1, 3),)), path)
    with pytest.raises(UnsupportedModelError, match="expected one"):
        load_program(path)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("builtin:resnet", "unknown builtin model"),
        ("builtin:cifar10-resnet32", "no weights of its own"),
        ("timm:resnet1800", "timm has no architecture"),
        ("nowhere.module:make", "No module named"),
        ("resnet18", "MODEL is 'resnet18'"),
        ("missing.pt2", "does not exist"),
        ("tests.models:not_a_module", "returned dict"),
    ],
)
def test_bad_model_names(spec: str, match: str) -> None:
    with pytest.raises(BadInputError, match=match) as caught:
        load_model(spec)
    assert caught.value.hint or "returned" in match
