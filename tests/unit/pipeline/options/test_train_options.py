"""Options of train and sweep: what is read, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixport.pipeline.options.build_options import spell_command
from mixport.pipeline.options.train_options import SweepOptions, TrainOptions
from mixport.records.errors import BadOptionError


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        ("d.npz", "d.npz"),
        ("~/folder", str(Path.home() / "folder")),
        ("noise", None),
        ("images:folder", None),
        ("mixup", None),
        ("single", None),
        ("genq", None),
    ],
)
def test_data_are_labelled_images_unless_they_are_a_method(data: str, labelled: str | None) -> None:
    found = TrainOptions.of({"data": data}).labelled
    assert found == (None if labelled is None else Path(labelled))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "plain", "budget": "w4a4"}, "--budget has no effect with --method plain"),
        ({"method": "symreg", "noise": "uniform"}, "--noise has no effect with --method symreg"),
        ({"method": "satnl", "noise_epochs": 1}, "--noise-epochs has no effect with --method satnl"),
        ({"method": "plain", "learn_widths": False}, "--learn-widths has no effect with --method plain"),
        ({"method": "plain", "iters": 3}, "--iters has no effect with --method plain"),
        ({"method": "plain", "target": "ort-cpu"}, "--target has no effect with --method plain"),
        ({"method": "plain", "block_weight": 1.0}, "--block-weight has no effect with --method plain"),
        ({"data": "d.npz", "temperature": 4.0}, "--temperature has no effect without a --teacher"),
        ({"data": "d.npz", "teacher_weight": 0.0}, "--teacher-weight has no effect without a --teacher"),
        ({"temperature": 0.0}, "--temperature: .*got 0"),
        ({"block_weight": -1.0}, "--block-weight: .*got -1"),
        ({"symmetry": 1.0}, "--symmetry has no effect with --method nipq"),
        ({"symmetry_pairing": "2:2"}, "--symmetry-pairing has no effect with --method nipq"),
        ({"bound": 2.0}, "--bound has no effect with --method nipq"),
        ({"kurtosis": 0.0}, "--kurtosis has no effect with --method nipq"),
        ({"regularise_depthwise": True}, "--regularise-depthwise has no effect with --method nipq"),
        ({"noise_epochs": 11}, "--noise-epochs is 11, allowed up to --epochs 10"),
        ({"data": "noise", "teacher": "none"}, "--data noise has no labels and --teacher none"),
        ({"data": "d.npz", "label_weight": 0.0}, "leave nothing to learn from d.npz"),
        (
            {"data": "d.npz", "label_weight": 0.0, "teacher": "self", "teacher_weight": 0.0},
            "leave nothing to learn from d.npz",
        ),
        ({"data": "noise", "teacher_weight": 0.0}, "leave nothing to learn from noise"),
        ({"random_weights": True, "weights": "x"}, "--random-weights and --weights contradict each other"),
        ({"epochs": 0}, "--epochs: input should be greater than or equal to 1, got 0"),
        ({"batch": 0}, "--batch: .*got 0"),
        ({"lr": 0.0}, "--lr: .*got 0"),
        ({"lr": float("inf")}, "--lr: .*got inf"),
        ({"ema": 1.0}, "--ema: .*less than 1, got 1"),
        ({"rho": -1.0}, "--rho: .*got -1"),
        ({"seed": -1}, "--seed: .*got -1"),
        ({"images": 1}, "--images: .*got 1"),
        ({"edge_bits": 9}, "--edge-bits: .*got 9"),
        ({"method": "lsq"}, "--method: .*'nipq'.*got 'lsq'"),
        ({"scheme": "w4a4"}, "unknown option 'scheme', allowed: .*budget"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOptionError, match=message) as caught:
        TrainOptions.of(given)
    assert caught.value.hint


@pytest.mark.parametrize(
    "given",
    [
        {"data": "d.npz", "label_weight": 0.0, "teacher": "self"},
        {"data": "d.npz", "teacher": "none"},
        {"data": "d.npz", "teacher": "self", "teacher_weight": 0.0},
        {"data": "noise", "teacher_weight": 0.0, "block_weight": 1.0},
        {"data": "d.npz", "label_weight": 0.0, "block_weight": 1.0},
        {"data": "noise", "label_weight": 0.0},
        {"noise_epochs": 10},
        {"noise_epochs": 0},
    ],
)
def test_what_leaves_something_to_learn_is_allowed(given: dict[str, Any]) -> None:
    assert TrainOptions.of(given).model_fields_set == set(given)


def test_the_command_repeats_what_differs_from_the_defaults() -> None:
    given = {"model": "a:b", "method": "symreg+satnl", "data": "my d.npz", "lr": 0.5, "epochs": 10}
    assert spell_command("train", TrainOptions.of(given)) == (
        "mixport train a:b --method symreg+satnl --data 'my d.npz' --lr 0.5"
    )


@pytest.mark.parametrize(
    ("given", "schemes", "iters"),
    [
        ({}, ("w8a8", "w4a4", "w3a4", "w2a4"), (0,)),
        ({"schemes": "w4a4, w2a4,", "iters": "0,500"}, ("w4a4", "w2a4"), (0, 500)),
        ({"schemes": ["w4a4,w3a4", "w2a4"], "iters": ["0", "2"]}, ("w4a4", "w3a4", "w2a4"), (0, 2)),
        ({"schemes": ("w4a4",), "iters": 7}, ("w4a4",), (7,)),
        ({"iters": [0, 500]}, ("w8a8", "w4a4", "w3a4", "w2a4"), (0, 500)),
    ],
)
def test_a_sweep_s_lists_are_words_with_commas_or_repeated(
    given: dict[str, Any], schemes: tuple[str, ...], iters: tuple[int, ...]
) -> None:
    found = SweepOptions.of(given)
    assert (found.schemes, found.iters) == (schemes, iters)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schemes": ","}, "--schemes and --iters name at least one each"),
        ({"iters": []}, "--schemes and --iters name at least one each"),
        ({"iters": "0,-1"}, r"--iters is \(0, -1\), allowed 0 and more"),
        ({"iters": "many"}, "--iters: .*got 'many'"),
        ({"images": 0}, "--images: .*got 0"),
        ({"scheme": "w4a4"}, "unknown option 'scheme'"),
    ],
)
def test_a_sweep_that_is_wrong_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOptionError, match=message):
        SweepOptions.of(given)
