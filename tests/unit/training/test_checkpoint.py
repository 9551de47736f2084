import pickle
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_checkpoint, resume, save_checkpoint, save_parts


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("ran",))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"step": 3, "values": {"w": torch.arange(4.0)}})
    save_checkpoint(path, {"step": 4, "values": {"w": torch.arange(4.0) + 1}})
    state = load_checkpoint(path)
    assert state is not None and state["step"] == 4
    assert torch.equal(state["values"]["w"], torch.arange(4.0) + 1)
    assert [one.name for one in tmp_path.iterdir()] == ["run.ckpt"]


def test_a_run_goes_on_with_every_part(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"

    def parts() -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        model = torch.nn.Linear(2, 1)
        return {"model": model, "optimiser": torch.optim.SGD(model.parameters(), lr=0.1)}

    trained, other = parts(), parts()
    assert resume(path, other) == 0
    trained["optimiser"].param_groups[0]["lr"] = 0.02  # type: ignore[union-attr]
    save_parts(path, trained, done=7)
    assert resume(path, other) == 7
    assert torch.equal(other["model"].weight, trained["model"].weight)  # type: ignore[union-attr]
    assert other["optimiser"].param_groups[0]["lr"] == 0.02  # type: ignore[union-attr]


def test_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.ckpt"
    torch.save({"step": _Runs()}, path)
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(path)
    assert "ran" not in capsys.readouterr().out
