"""Units that read much noise learn from more float values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixport.quantize.reconstruction.caches import Activations, Room, fill
from mixport.quantize.reconstruction.optimise import UnitData, input_noise
from mixport.reconstruction_preset import PRESETS, Stage
from tests import reconstruction as small
from tests.reconstruction import DEFAULT, changed, learn, task_of


def kept(values: Tensor) -> Activations:
    room = Room(Path("nowhere"), largest=1 << 30, device=torch.device("cpu"))
    return fill(len(values), 2, lambda part: values[part], room=room)


def noise(wanted: Tensor, got: Tensor, *, batch: int = 2) -> float:
    return input_noise(UnitData(float_input=kept(wanted), quantised_input=kept(got), target=kept(wanted)), batch=batch)


def test_noise_is_relative_to_the_float_input() -> None:
    wanted = torch.tensor([[1.0, 2.0], [2.0, 0.0], [0.0, 0.0]])
    got = wanted + torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    assert noise(wanted, got) == noise(wanted, got, batch=1) == 0.5 / 9.0
    assert noise(wanted, wanted) == noise(0 * wanted, 0 * wanted) == 0.0
    assert noise(1e30 * wanted, 1e30 * got) == pytest.approx(0.5 / 9.0)


def test_at_least_half_is_dropped_of_what_is_too_noisy() -> None:
    stage = Stage(input_drop=0.25, inner_drop=0.75, noisy=0.2)
    assert stage.dropping(0.0) is stage.dropping(0.2) is stage
    assert stage.dropping(float("nan")) is stage
    noisy = stage.dropping(0.21)
    assert (noisy.input_drop, noisy.inner_drop) == (0.5, 0.75)
    assert noisy == stage.dropping(float("inf"))
    assert Stage(input_drop=0.25).dropping(100.0) == Stage(input_drop=0.25)


def test_units_say_how_much_was_dropped(tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path)
    shares = {
        limit: [unit.dropped for unit in learn(task, images, tmp_path, iters=2, preset=changed(DEFAULT, noisy=limit)).record.units]
        for limit in (None, 1e-3)
    }
    # `second` reads what an 8-bit layer gives, `third` what 2-bit weights and 4-bit activations do.
    assert shares[None] == [0.25, 0.25]
    assert shares[1e-3] == [0.25, 0.5]


def test_published_recipes_drop_what_they_publish() -> None:
    assert [name for name, preset in PRESETS.items() if any(stage.noisy is not None for stage in preset.stages)] == ["mixport"]
