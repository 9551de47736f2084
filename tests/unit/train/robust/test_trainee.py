"""A float model in training: what moves, what stays, what comes out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixport.train.robust.kure import kurtosis_loss
from mixport.train.robust.layers import regular_layers
from mixport.train.robust.symreg import symmetry_loss
from mixport.train.robust.trainee import RobustSettings, RobustTrainee
from tests.unit.train.toys import SIDE, toy_net

CPU = torch.device("cpu")
EVERYTHING = RobustSettings(symmetry=0.5, bound=2.0, kurtosis=0.25, refresh=2)


def trainee(settings: RobustSettings | None = None, net: nn.Module | None = None) -> RobustTrainee:
    return RobustTrainee(net or toy_net(), settings or RobustSettings(), device=CPU)


def pixels(seed: int = 0) -> Tensor:
    return torch.randn((4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def step(made: RobustTrainee, *, rate: float = 0.1) -> None:
    """Plain gradient descent."""
    penalty = made.penalty()
    loss = made.outputs(pixels()).square().mean() + (0.0 if penalty is None else penalty)
    loss.backward()
    with torch.no_grad():
        for one in made.module.parameters():
            if one.grad is not None:
                one -= rate * one.grad
                one.grad = None
    made.after_step()


def started(settings: RobustSettings | None = None, net: nn.Module | None = None) -> RobustTrainee:
    made = trainee(settings, net)
    made.start_epoch(torch.Generator())
    return made


def test_the_given_module_stays_as_it_is() -> None:
    net = toy_net().requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    made = started(EVERYTHING, net)
    step(made)
    made.result()
    assert not net.training
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not one.requires_grad and one.grad is None for one in net.parameters())


def test_norms_take_statistics_of_the_batch_in_training_and_their_own_in_prediction() -> None:
    net = toy_net()
    made = started(net=net)
    norm = made.module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        assert torch.equal(
            made.predict(pixels()), net(pixels().contiguous(memory_format=torch.channels_last))
        )
    assert torch.equal(norm.running_mean, torch.zeros(20)), "prediction moves no statistics"
    outputs = made.outputs(pixels())
    assert not torch.equal(norm.running_mean, torch.zeros(20))
    with torch.no_grad():
        shown = made.predict(pixels())
        assert not torch.equal(outputs.detach(), shown)
        assert torch.equal(shown, made.predict(pixels())), "the same whenever it is asked"
    assert norm.training, "training goes on after a look"


def test_a_failed_prediction_leaves_the_network_in_training() -> None:
    made = started()
    with pytest.raises(RuntimeError):
        made.predict(torch.zeros(1, 5, SIDE, SIDE))
    assert made.module.get_submodule("1").training


def test_nothing_random_is_left_in_training() -> None:
    made = started()
    torch.manual_seed(1)
    first = made.outputs(pixels())
    torch.manual_seed(2)
    assert torch.equal(first, made.outputs(pixels()))
    assert not made.module.get_submodule("4").training, "dropout is off"
    assert made.module.get_submodule("0").training


def test_weights_decay_and_biases_and_norms_do_not() -> None:
    made = trainee(EVERYTHING)
    decayed, others = made.groups(weight_decay=0.125)
    assert (decayed.decay, others.decay, decayed.factor, others.factor) == (0.125, 0.0, 1.0, 1.0)
    names = {id(one): name for name, one in made.module.named_parameters()}
    assert {names[id(one)] for one in decayed.parameters} == {
        "0.parametrizations.weight.original",
        "3.weight",
        "7.parametrizations.weight.original",
    }
    assert {names[id(one)] for one in others.parameters} == {
        "0.bias",
        "1.weight",
        "1.bias",
        "3.bias",
        "7.bias",
    }


def test_the_result_loads_strictly_and_is_what_was_shown() -> None:
    net = toy_net()
    made = started(EVERYTHING, net)
    for _ in range(3):
        step(made)
    with torch.no_grad():
        wanted = made.predict(pixels())
    result = made.result()
    assert not result.training and not any(one.requires_grad for one in result.parameters())
    other = toy_net()
    other.load_state_dict(result.state_dict(), strict=True)
    with torch.no_grad():
        # One memory order and another, so convolutions may sum in another order: 20 x 27 products near 1.
        torch.testing.assert_close(other(pixels()), wanted, rtol=1e-4, atol=1e-5)
    bounds = made.bounds
    assert set(bounds) == {"0", "7"}
    for name, bound in bounds.items():
        assert float(result.state_dict()[f"{name}.weight"].abs().max()) <= bound
    assert any(not torch.equal(value, net.state_dict()[name]) for name, value in result.state_dict().items())


def test_a_result_in_between_does_not_disturb_the_training() -> None:
    made, other = started(EVERYTHING), started(EVERYTHING)
    for number in range(3):
        if number:
            made.result()
        step(made)
        step(other)
    for name, value in other.module.state_dict().items():
        assert torch.equal(made.module.state_dict()[name], value), name
    one, two = made.result(), other.result()
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("pairing", ["1:1", "2:2"])
def test_the_penalty_is_the_mean_over_layers(pairing: Any, *, depthwise: bool) -> None:
    settings = RobustSettings(symmetry=0.5, kurtosis=0.25, pairing=pairing, depthwise=depthwise)
    made = started(settings)
    weights = [layer.weight.detach() for _, layer in regular_layers(made.module, depthwise=depthwise)]
    assert len(weights) == 2 + depthwise
    each = [
        0.5 * float(symmetry_loss(one, torch.argsort(one.reshape(-1)), pairing=pairing))
        + 0.25 * float(kurtosis_loss(one))
        for one in weights
    ]
    penalty = made.penalty()
    assert penalty is not None
    # A sum of two or three numbers in another order.
    assert float(penalty.detach()) == pytest.approx(sum(each) / len(each), rel=1e-6)


def test_a_plain_fine_tune_has_no_penalty() -> None:
    assert started(RobustSettings()).penalty() is None
    assert started(RobustSettings(bound=2.0)).penalty() is None


def test_a_model_without_layers_has_no_penalty() -> None:
    made = started(RobustSettings(symmetry=1.0), nn.Sequential(nn.BatchNorm2d(3)))
    assert made.penalty() is None and made.report() == {}


def test_symmetry_makes_weights_less_lopsided() -> None:
    before = started(RobustSettings(symmetry=1.0))
    first = before.report()["asymmetry"]
    for _ in range(20):
        penalty = before.penalty()
        assert penalty is not None
        penalty.backward()
        with torch.no_grad():
            for one in before.module.parameters():
                if one.grad is not None:
                    one -= 0.05 * one.grad
                    one.grad = None
        before.after_step()
    assert before.report()["asymmetry"] < first


def test_orders_are_sorted_again_at_the_start_of_an_epoch() -> None:
    """Or an epoch would depend on when the process was started."""
    settings = RobustSettings(symmetry=1.0, refresh=1000)
    made = started(settings)
    step(made, rate=3.0)
    kept = made.penalty()
    made.start_epoch(torch.Generator())
    anew = made.penalty()
    fresh = started(settings, made.result())
    wanted = fresh.penalty()
    assert kept is not None and anew is not None and wanted is not None
    assert float(anew.detach()) == float(wanted.detach()) != float(kept.detach())


def test_the_report_is_the_mean_over_layers_relative_to_the_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.tensor([[1.0, 3.0]]))
        net.get_parameter("1.weight").copy_(torch.tensor([[-2.0], [2.0]]))
    # |1 + 3| / 2 = 2, and 0.
    assert trainee(net=net).report() == {"asymmetry": pytest.approx(1.0, rel=1e-6)}


def test_amp_trains_in_bfloat16_and_shows_and_leaves_float32() -> None:
    made, fast = started(), RobustTrainee(toy_net(), RobustSettings(), device=CPU, amp=True)
    fast.start_epoch(torch.Generator())
    assert made.outputs(pixels()).dtype == torch.float32
    outputs = fast.outputs(pixels())
    assert outputs.dtype == torch.bfloat16
    outputs.float().square().mean().backward()
    assert all(one.grad is None or one.grad.dtype == torch.float32 for one in fast.module.parameters())
    with torch.no_grad():
        assert fast.predict(pixels()).dtype == torch.float32
    assert {value.dtype for value in fast.result().state_dict().values()} <= {torch.float32, torch.int64}
