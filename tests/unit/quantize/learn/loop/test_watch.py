"""What a loop of steps tells, and when it is ended."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixport.quantize.gradients import NotLearnedError
from mixport.quantize.learn.loop.watch import Watch


def told(steps: int) -> list[tuple[int, float]]:
    """What is told of a loop whose loss at a step is the step's number."""
    heard: list[tuple[int, float]] = []
    watch = Watch(steps, lambda done, loss: heard.append((done, loss)))
    for step in range(steps):
        watch.see(step, torch.tensor(float(step)))
    return heard


def test_every_twentieth_step_and_the_last_one_are_told_with_their_loss() -> None:
    assert told(45) == [(20, 19.0), (20, 39.0), (5, 44.0)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, []), (1, [(1, 0.0)]), (19, [(19, 18.0)]), (20, [(20, 19.0)]), (21, [(20, 19.0), (1, 20.0)])],
)
def test_the_last_step_is_told_once(steps: int, expected: list[tuple[int, float]]) -> None:
    assert told(steps) == expected


@given(st.integers(0, 300))
def test_each_step_is_counted_once(steps: int) -> None:
    assert sum(done for done, _ in told(steps)) == steps


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_finite_number_ends_the_loop_and_names_the_step(value: float) -> None:
    heard: list[tuple[int, float]] = []
    watch = Watch(20, lambda done, loss: heard.append((done, loss)))
    for step in range(19):
        watch.see(step, torch.tensor(0.5))
    with pytest.raises(NotLearnedError, match=rf"^loss {value} at step 20$"):
        watch.see(19, torch.tensor(value))
    assert heard == []  # a step that failed is not told as done


def test_a_loss_with_a_gradient_is_read_and_stays_as_it_was() -> None:
    heard: list[float] = []
    loss = torch.tensor(3.0, requires_grad=True) * 2
    Watch(1, lambda _, value: heard.append(value)).see(0, loss)
    assert heard == [6.0] and loss.requires_grad


def test_two_loops_count_on_their_own() -> None:
    first, second = list[int](), list[int]()
    one, other = Watch(3, lambda done, _: first.append(done)), Watch(2, lambda done, _: second.append(done))
    for step in range(2):
        one.see(step, torch.tensor(1.0))
        other.see(step, torch.tensor(1.0))
    assert (first, second) == ([], [2])


@pytest.mark.parametrize("learned", [[], [torch.empty(0)], [torch.tensor([3e38, -3e38]), torch.zeros(2, 2)]])
def test_finite_numbers_pass_however_large(learned: list[torch.Tensor]) -> None:
    Watch(7, lambda *_: None).end(learned)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_enough(value: float) -> None:
    learned = (tensor for tensor in [torch.zeros(3), torch.tensor([[0.0, value]])])
    with pytest.raises(NotLearnedError, match=r"^what was learned is not finite after step 7$"):
        Watch(7, lambda *_: None).end(learned)
