"""A finished MLP comes back from disk bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from mixport.quantize.learn.mlps.mlp_file import FinishedMlp, read_mlp, write_mlp
from mixport.records.choices.search import MlpRecord
from mixport.records.decision import Decision


def mlp(
    values: dict[str, Tensor] | None, *, errors: tuple[float | None, float | None] = (0.25, 0.0625)
) -> FinishedMlp:
    return FinishedMlp(
        values=values,
        record=MlpRecord(
            name="blocks.0.mlp", layers=("norm", "fc1", "fc2"), error_before=errors[0], error_after=errors[1]
        ),
        decision=Decision(where="blocks.0.mlp", what="GELU → ReLU", why='its error is <"small">'),
    )


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight1": torch.randn(6, 4, generator=generator),
        "bias1": torch.tensor([1e-45, -0.0, 3e38, 1 / 3, -1e-30, 0.1]),
        "weight2": torch.randn(6, 4, generator=generator).t(),  # not contiguous
        "bias2": torch.randn(8, generator=generator)[::2],
    }


def bits(tensor: Tensor) -> list[int]:
    """-0.0 and 0.0 are equal, but not the same."""
    return tensor.contiguous().view(torch.int32).flatten().tolist()


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    written = weights()
    write_mlp(tmp_path, mlp(written))
    found = read_mlp(tmp_path).values
    assert found is not None and found.keys() == written.keys()
    for name, value in written.items():
        assert found[name].dtype is torch.float32 and found[name].shape == value.shape
        assert bits(found[name]) == bits(value)


@pytest.mark.parametrize("errors", [(0.1 + 0.2, 1e-300), (None, 0.5), (0.5, None), (None, None)])
def test_record_and_decision_come_back_as_they_were(
    errors: tuple[float | None, float | None], tmp_path: Path
) -> None:
    written = mlp(weights(), errors=errors)
    write_mlp(tmp_path, written)
    found = read_mlp(tmp_path)
    assert (found.record, found.decision) == (written.record, written.decision)


@pytest.mark.parametrize("values", [None, {}])
def test_an_mlp_that_keeps_its_gelu_has_no_weights(values: dict[str, Tensor] | None, tmp_path: Path) -> None:
    write_mlp(tmp_path, mlp(values))
    assert read_mlp(tmp_path) == mlp(None)


def test_what_stood_in_the_folder_is_replaced(tmp_path: Path) -> None:
    write_mlp(tmp_path, mlp(weights()))
    write_mlp(tmp_path, mlp(None, errors=(0.5, 0.75)))
    assert read_mlp(tmp_path) == mlp(None, errors=(0.5, 0.75))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp.json", "mlp.safetensors"]


def test_writing_leaves_the_tensors_as_they_were(tmp_path: Path) -> None:
    values = weights()
    write_mlp(tmp_path, mlp(values))
    assert not values["weight2"].is_contiguous()
    assert all(torch.equal(value, weights()[name]) for name, value in values.items())


def test_the_record_is_json_that_others_can_read(tmp_path: Path) -> None:
    write_mlp(tmp_path, mlp(None, errors=(None, 0.5)))
    record, decision = json.loads((tmp_path / "mlp.json").read_bytes())
    assert record == {
        "name": "blocks.0.mlp",
        "layers": ["norm", "fc1", "fc2"],
        "error_before": None,
        "error_after": 0.5,
    }
    assert decision["what"] == "GELU → ReLU"


@pytest.mark.parametrize(
    ("name", "error"), [("mlp.json", ValidationError), ("mlp.safetensors", SafetensorError)]
)
def test_a_file_that_was_cut_is_an_error(name: str, error: type[Exception], tmp_path: Path) -> None:
    write_mlp(tmp_path, mlp(weights()))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(error):
        read_mlp(tmp_path)
