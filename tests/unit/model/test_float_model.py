from __future__ import annotations

import pytest
import torch
from torch import nn

from mixport.model.float_model import load_model
from mixport.records.errors import BadInputError
from tests.reconstruction import float_model


def test_float_bytes_count_parameters_and_buffers_once() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.Linear(4, 4, bias=False),
        nn.Linear(4, 4, bias=False),
    )
    assert float_model(module).float_bytes == 4 * (12 + 4 * 4 + 16 + 16), (
        "running means and variances too, but no count of batches"
    )
    module[3].weight = module[2].weight
    assert len(module.state_dict()) == 8, "both names are in the state dict"
    assert float_model(module).float_bytes == 4 * (12 + 4 * 4 + 16)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, r"its mean is \(123.7, 116.3, 103.5\), allowed units of \[0, 1\]"),
        ({"std": (0.2, 0.0, 0.2)}, r"its std is \(0.2, 0.0, 0.2\), allowed numbers above 0"),
    ],
)
def test_what_a_factory_states_is_in_units_of_0_to_1(
    monkeypatch: pytest.MonkeyPatch, stated: dict[str, object], message: str
) -> None:
    module = nn.Conv2d(3, 4, 1)
    module.pretrained_cfg = stated
    monkeypatch.setattr("tests.models.tiny", lambda: module)
    with pytest.raises(BadInputError, match=message):
        load_model("tests.models:tiny")


def test_the_seed_of_random_weights_may_be_of_any_size() -> None:
    made = load_model("builtin:cifar10-resnet20", random_weights=True, seed=2**64)
    assert all(bool(torch.isfinite(value).all()) for value in made.module.state_dict().values())
