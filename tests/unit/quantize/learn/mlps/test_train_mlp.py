from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixport.quantize.gradients import NotLearnedError
from mixport.quantize.graph.capture import capture
from mixport.quantize.learn.loop.activation_store import Activations, ActivationStore, fill
from mixport.quantize.learn.mlps.find import Mlp, find_mlps, read_values
from mixport.quantize.learn.mlps.train import (
    gelu_output,
    positive_quantile,
    relative_error,
    relu_output,
    train,
)
from tests.reconstruction import mlps

Case = tuple[Mlp, dict[str, Tensor], Activations, Activations]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """The first MLP, six images of eight rows, and what it makes of them."""
    graph = capture(mlps().requires_grad_(False), input_shape=(1, 3, 16, 16), dynamic_batch=True).graph
    mlp = find_mlps(graph)[0]
    values, store = (
        read_values(graph, mlp),
        ActivationStore(tmp_path, largest=1 << 20, device=torch.device("cpu")),
    )
    x = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(0))
    return (
        mlp,
        values,
        fill(6, 3, lambda part: x[part], store=store),
        fill(6, 3, lambda part: gelu_output(mlp, values, x[part]), store=store),
    )


def test_the_error_is_that_of_relu_relative_to_the_target(case: Case) -> None:
    mlp, values, inputs, targets = case
    x, y = inputs.at(slice(0, 6)), targets.at(slice(0, 6))
    expected = float((relu_output(mlp, values, x) - y).square().sum() / y.square().sum())
    assert relative_error(mlp, values, inputs, targets, batch=4) == pytest.approx(expected, rel=1e-5)
    assert 0.001 < expected < 0.2, "ReLU is near GELU, and not the same"


def test_learning_lowers_the_error_and_leaves_what_it_started_from(case: Case) -> None:
    mlp, values, inputs, targets = case
    first = {name: value.clone() for name, value in values.items()}
    heard: list[tuple[int, float]] = []
    learned = train(
        mlp,
        values,
        inputs,
        targets,
        quantile=1.0,
        batch=4,
        steps=150,
        seed=0,
        advance=lambda count, loss: heard.append((count, loss)),
    )
    before, after = (relative_error(mlp, found, inputs, targets, batch=6) for found in (values, learned))
    assert after < 0.9 * before
    assert sum(count for count, _ in heard) == 150 and heard[-1][1] < heard[0][1]
    assert learned.keys() == values.keys() == {"gain", "offset", "weight1", "bias1", "weight2", "bias2"}
    assert all(
        torch.equal(values[name], first[name]) and not torch.equal(values[name], learned[name])
        for name in values
    )


def test_clipping_makes_large_values_matter_less(case: Case) -> None:
    mlp, values, inputs, targets = case

    def clipped(found: dict[str, Tensor]) -> float:
        """Error with the values between the layers clipped at their median."""
        hidden = torch.nn.functional.layer_norm(
            inputs.at(slice(0, 6)), (8,), found["gain"], found["offset"], mlp.epsilon
        )
        hidden = (hidden @ found["weight1"].T + found["bias1"]).relu()
        got = hidden.clamp(max=positive_quantile(hidden, 0.5)) @ found["weight2"].T + found["bias2"]
        return float((got - targets.at(slice(0, 6))).square().mean())

    plain, hard = (
        train(
            mlp,
            values,
            inputs,
            targets,
            quantile=quantile,
            batch=6,
            steps=100,
            seed=0,
            advance=lambda *_: None,
        )
        for quantile in (1.0, 0.5)
    )
    assert clipped(hard) < clipped(plain)


def test_the_seed_decides(case: Case) -> None:
    mlp, values, inputs, targets = case
    a, b, c = (
        train(mlp, values, inputs, targets, quantile=0.98, batch=2, steps=5, seed=s, advance=lambda *_: None)
        for s in (0, 0, 1)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["weight1"], c["weight1"])


def test_a_loss_that_is_no_number_ends_learning(case: Case) -> None:
    mlp, values, inputs, targets = case
    values["bias2"] = torch.full_like(values["bias2"], math.inf)
    with pytest.raises(NotLearnedError, match=r"loss (inf|nan) at step 1"):
        train(mlp, values, inputs, targets, quantile=0.98, batch=2, steps=5, seed=0, advance=lambda *_: None)


def test_quantiles_are_of_positive_values_in_every_channel() -> None:
    values = torch.arange(-50.0, 101.0).reshape(1, -1)
    assert positive_quantile(values, 0.98) == 98.0
    assert positive_quantile(values, 1.0) == 100.0
    assert positive_quantile(-values.abs(), 0.98) == math.inf
    channels = torch.zeros(1 << 17, 4)
    channels[:, 1] = 7.0
    assert positive_quantile(channels, 0.5) == 7.0, "an even stride would never meet channel 1"
