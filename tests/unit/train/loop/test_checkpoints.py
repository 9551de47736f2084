"""The state after an epoch on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mixport.records.choices.trained import EpochRecord
from mixport.train.loop.checkpoints import read_state, write_state
from tests.unit.train.toys import toy_net

CURVE = [
    EpochRecord(phase="noise", epoch=0, loss=1 / 3, held_out=0.1, figures={"gbop": 2 / 3}),
    EpochRecord(phase="noise", epoch=1, loss=1e-30, held_out=1.0),
]


def made(kind: str, *, steps: int) -> tuple[nn.Module, Optimizer]:
    """A network whose optimiser has momenta."""
    net = toy_net().train().to(memory_format=torch.channels_last)
    parameters = list(net.parameters())
    optimiser: Optimizer = (
        SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
        if kind == "sgd"
        else AdamW(parameters, lr=0.01, fused=True)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimiser.zero_grad()
        net(torch.randn((2, 3, 8, 8), generator=generator)).square().sum().backward()
        optimiser.step()
    return net, optimiser


def momenta(optimiser: Optimizer) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": value
        for number, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_everything_comes_back(kind: str, tmp_path: Path) -> None:
    net, optimiser = made(kind, steps=2)
    average = [one.detach() * 0.5 for one in net.parameters()]
    write_state(tmp_path, module=net, optimiser=optimiser, average=average, curve=CURVE)
    other, fresh = made(kind, steps=1)
    empty = [torch.zeros_like(one) for one in average]
    assert read_state(tmp_path, module=other, optimiser=fresh, average=empty) == CURVE
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert all(torch.equal(one, found) for one, found in zip(average, empty, strict=True))
    wanted, found = momenta(optimiser), momenta(fresh)
    assert found.keys() == wanted.keys() and wanted
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_memory_orders_stay(kind: str, tmp_path: Path) -> None:
    """A fused optimiser walks memory: momenta in another order would belong to other weights."""
    net, optimiser = made(kind, steps=1)
    write_state(tmp_path, module=net, optimiser=optimiser, average=[], curve=[])
    other, fresh = made(kind, steps=0)
    read_state(tmp_path, module=other, optimiser=fresh, average=[])
    for one, found in zip(net.parameters(), other.parameters(), strict=True):
        assert one.stride() == found.stride()
    wanted, found = momenta(optimiser), momenta(fresh)
    assert {name: one.stride() for name, one in found.items()} == {
        name: one.stride() for name, one in wanted.items()
    }


def test_an_optimiser_that_made_no_step_has_no_momenta(tmp_path: Path) -> None:
    net, optimiser = made("sgd", steps=0)
    write_state(tmp_path, module=net, optimiser=optimiser, average=[], curve=[])
    other, fresh = made("sgd", steps=1)
    read_state(tmp_path, module=other, optimiser=fresh, average=[])
    assert momenta(fresh) == {}


def test_files_are_safetensors_and_json_without_pickle(tmp_path: Path) -> None:
    net, optimiser = made("adam", steps=1)
    write_state(tmp_path, module=net, optimiser=optimiser, average=[], curve=CURVE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    with safe_open(tmp_path / "state.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    assert {f"module/{name}" for name in net.state_dict()} <= names
    assert {name.partition("/")[0] for name in names} == {"module", "optimiser"}
    assert list(json.loads((tmp_path / "state.json").read_text())) == ["curve"]
    # Magic of zip files and of pickle protocol 2 and up.
    for path in tmp_path.iterdir():
        assert not path.read_bytes().startswith((b"PK", b"\x80"))


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    net, optimiser = made("sgd", steps=1)
    write_state(tmp_path, module=net, optimiser=optimiser, average=[], curve=[])
    other = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="Error"):
        read_state(tmp_path, module=other, optimiser=SGD(other.parameters(), lr=0.1), average=[])
