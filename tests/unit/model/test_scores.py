from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixport.model.float_model import FloatModel
from mixport.model.score_formulas import similarity_entropy
from mixport.model.scores import ModelScores
from mixport.records.calibration_set import ImageScores, Preprocessing
from mixport.records.errors import BadInputError, BadOptionError, UnsupportedModelError
from mixport.storage.images import normalise

SIDE = 12


def float_model(module: nn.Module, *, one_image: bool = False) -> FloatModel:
    return FloatModel(
        module=module.eval().requires_grad_(False),
        name="test",
        source="tests:model",
        sha256="00" * 32,
        preprocessing=Preprocessing(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        class_names=None,
        input_shape=(1, 3, SIDE, SIDE),
        one_image=one_image,
    )


def smooth(count: int, *, seed: int) -> NDArray[np.uint8]:
    """Gradients of colour: low frequencies only."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(-1.0, 1.0, SIDE)
    slopes = random.normal(0.0, 0.12, (2, count, 1, 1, 3))
    values = (
        0.5
        + slopes[0] * ramp[None, :, None, None]
        + slopes[1] * ramp[None, None, :, None]
        + random.normal(0.0, 0.05, (count, 1, 1, 3))
    )
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def noise(count: int, *, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


class Cnn(nn.Module):
    """Two BatchNorm layers; the second one is used twice, the third sees [N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.bn3, self.head = nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(self.bn3(x.mean((2, 3))))


def trained(module: nn.Module, images: NDArray[np.uint8]) -> FloatModel:
    """BatchNorm buffers of these images, by torch's own averaging."""
    model = float_model(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.momentum = None
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.as_tensor(normalise(images, preprocessing=model.preprocessing)))
    module.eval()
    return model


@pytest.fixture
def cnn() -> FloatModel:
    torch.manual_seed(0)
    return trained(Cnn(), smooth(64, seed=1))


def brute_force(model: FloatModel, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Each distance from a fresh BatchNorm layer of torch that sees the group, with and without the image."""
    reads: list[tuple[nn.Module, Tensor]] = []
    layers = [layer for layer in model.module.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: reads.append((layer, inputs[0].double())))
        for layer in layers
    ]
    with torch.no_grad():
        model.module(torch.as_tensor(normalise(images, preprocessing=model.preprocessing)))
    for handle in handles:
        handle.remove()

    def distance(kept: list[int]) -> float:
        total = 0.0
        for layer, values in reads:
            part = (
                values[kept]
                .reshape(len(kept), values.shape[1], -1)
                .permute(0, 2, 1)
                .reshape(-1, values.shape[1])
            )
            fresh = nn.BatchNorm1d(values.shape[1], momentum=1.0, dtype=torch.float64).train()
            # torch wants two values at least; the variance of one value, there twice, is 0 as well.
            part = part if len(part) > 1 else part.repeat(2, 1)
            fresh(part)
            biased = fresh.running_var * (len(part) - 1) / len(part)
            total += float(
                (fresh.running_mean - layer.running_mean).norm() + (biased - layer.running_var).norm()
            )
        return total

    everything = list(range(len(images)))
    return np.array(
        [distance(everything) - distance([i for i in everything if i != one]) for one in everything]
    )


def test_sensitivity_is_the_brute_force_one(cnn: FloatModel) -> None:
    images = np.concatenate([smooth(9, seed=2), noise(2, seed=2)])
    scores, name = ModelScores(cnn).statistics(images)
    assert name == "batchnorm-sensitivity"
    np.testing.assert_allclose(scores, brute_force(cnn, images), rtol=1e-6, atol=1e-9)


def test_groups_are_of_equal_size_and_scored_apart(cnn: FloatModel) -> None:
    images = smooth(11, seed=3)
    scores, _ = ModelScores(cnn, batch=4).statistics(images)
    parts = [brute_force(cnn, images[start:end]) for start, end in ((0, 4), (4, 8), (8, 11))]
    np.testing.assert_allclose(scores, np.concatenate(parts), rtol=1e-6, atol=1e-9)


def test_no_image_is_a_group_of_its_own(cnn: FloatModel) -> None:
    images = smooth(5, seed=3)
    scores, _ = ModelScores(cnn, batch=2).statistics(images)
    parts = [brute_force(cnn, images[:3]), brute_force(cnn, images[3:])]
    np.testing.assert_allclose(scores, np.concatenate(parts), rtol=1e-6, atol=1e-9)


def test_batches_of_one_give_the_same_sensitivity(cnn: FloatModel) -> None:
    images = np.concatenate([smooth(6, seed=4), noise(1, seed=4)])
    one_by_one = float_model(cnn.module, one_image=True)
    np.testing.assert_allclose(
        ModelScores(one_by_one).statistics(images)[0],
        ModelScores(cnn).statistics(images)[0],
        rtol=1e-5,
        atol=1e-7,
    )


def test_noise_among_smooth_images_gets_the_worst_sensitivity(cnn: FloatModel) -> None:
    places = [5, 40, 77, 100]
    images = smooth(128, seed=5)
    images[places] = noise(4, seed=5)
    scores, _ = ModelScores(cnn).statistics(images)
    assert sorted(np.argsort(scores)[-4:].tolist()) == places
    assert (scores[places] > 0.0).all()


class TokenNorm(nn.Module):
    """BatchNorm over tokens that are flattened image by image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, stride=3), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.bn(tokens.flatten(0, 1)).reshape_as(tokens).mean(1)


def test_batch_norm_over_flattened_tokens() -> None:
    class Unflattened(nn.Module):
        def __init__(self, other: TokenNorm) -> None:
            super().__init__()
            self.conv, self.bn = other.conv, other.bn

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x).flatten(2)).mean(2)

    torch.manual_seed(0)
    flattened = TokenNorm()
    images = smooth(8, seed=6)
    model = trained(flattened, smooth(32, seed=1))
    np.testing.assert_allclose(
        ModelScores(model).statistics(images)[0],
        brute_force(float_model(Unflattened(flattened)), images),
        rtol=1e-6,
    )


class Mixing(nn.Module):
    """BatchNorm that reads one row for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)) + self.bn(x.mean((0, 2, 3)).unsqueeze(0)))


def test_a_batch_norm_that_mixes_images_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"reads \[1, 3\] for 4 images"):
        ModelScores(float_model(Mixing())).statistics(smooth(4, seed=0))


def test_sensitivity_of_one_image_is_refused(cnn: FloatModel) -> None:
    with pytest.raises(BadInputError, match="there is 1"):
        ModelScores(cnn).statistics(smooth(1, seed=0))
    with pytest.raises(BadOptionError, match="groups of 1"):
        ModelScores(cnn, batch=1)


def test_chosen_images_score_as_a_copy_of_them_would(cnn: FloatModel) -> None:
    images = smooth(40, seed=3)
    chosen = [1, 2, 3, 7, 8, 11, 20, 21, 22, 33, 39]
    torch.manual_seed(0)
    for model in (cnn, float_model(Vit())):
        scores = ModelScores(model, batch=4)
        np.testing.assert_array_equal(
            scores.statistics(images, chosen=chosen)[0], scores.statistics(images[chosen])[0]
        )


def test_chosen_images_are_copied_one_group_at_a_time(cnn: FloatModel) -> None:
    class Counted(np.ndarray):
        taken: ClassVar[list[int]] = []

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            if isinstance(key, np.ndarray):
                self.taken.append(len(found))
            return found

    ModelScores(cnn, batch=4).statistics(smooth(40, seed=3).view(Counted), chosen=range(0, 40, 2))
    assert Counted.taken == [4] * 5


def test_energy_is_minus_logsumexp(cnn: FloatModel) -> None:
    images = smooth(7, seed=7)
    with torch.no_grad():
        logits = cnn.module(torch.as_tensor(normalise(images, preprocessing=cnn.preprocessing)))
    energy = ModelScores(cnn).energy(images)
    assert (energy.dtype, energy.shape) == (np.float64, (7,))
    np.testing.assert_allclose(energy, -torch.logsumexp(logits.double(), 1).numpy(), rtol=1e-6)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), self.value)


def test_energy_of_large_logits_does_not_overflow() -> None:
    np.testing.assert_allclose(
        ModelScores(float_model(Constant(1e4))).energy(smooth(2, seed=0)), -1e4 - math.log(2.0)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_reported(value: float) -> None:
    scores = ModelScores(float_model(Constant(value)))
    with pytest.raises(BadInputError, match="tests:model gives NaN or infinity for 3 of 3 images"):
        scores.energy(smooth(3, seed=0))


class Vit(nn.Module):
    """Patches of 2x2 pixels, one block, a class token in front; LayerNorm of the pooled token comes last."""

    def __init__(self, *, prefix: int = 1, windows: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens, self.windows = prefix, windows
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.first, self.mix, self.last = nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)
        self.pooled, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def blocks(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full((len(x), self.num_prefix_tokens, 16), 50.0), tokens], 1)
        tokens = tokens + self.mix(self.first(tokens))
        return tokens.reshape(len(x), 6, 6, 16) if self.windows else tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.last(self.blocks(x))
        return self.head(self.pooled(tokens.mean(tuple(range(1, tokens.dim() - 1)))))


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_entropy_is_that_of_the_last_blocks_patch_tokens(prefix: int) -> None:
    torch.manual_seed(0)
    vit = Vit(prefix=prefix)
    images = smooth(70, seed=8)
    model = float_model(vit)
    scores, name = ModelScores(model).statistics(images)
    with torch.no_grad():
        tokens = (
            vit.blocks(torch.as_tensor(normalise(images, preprocessing=model.preprocessing)))[:, prefix:]
            .double()
            .numpy()
        )
    assert name == "negative-patch-similarity-entropy"
    np.testing.assert_allclose(scores, [-similarity_entropy(one) for one in tokens], rtol=1e-4)


def test_tokens_in_windows_are_tokens() -> None:
    torch.manual_seed(0)
    flat = Vit(prefix=0)
    windows = Vit(prefix=0, windows=True)
    windows.load_state_dict(flat.state_dict())
    images = smooth(5, seed=8)
    np.testing.assert_allclose(
        ModelScores(float_model(windows)).statistics(images)[0],
        ModelScores(float_model(flat)).statistics(images)[0],
        rtol=1e-4,
    )


def test_flat_images_have_the_worst_entropy() -> None:
    torch.manual_seed(0)
    images = smooth(20, seed=9)
    images[[3, 11]] = 128
    scores, _ = ModelScores(float_model(Vit())).statistics(images)
    assert sorted(np.argsort(scores)[-2:].tolist()) == [3, 11]


def tokens_at(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.linspace(0.5, 3.0, len(angles))[:, None]


def test_entropy_of_known_densities() -> None:
    # Two tokens have one similarity: the density is the kernel, whose entropy is ln(0.01 sqrt(2 pi e)).
    kernel = math.log(0.01 * math.sqrt(2.0 * math.pi * math.e))
    assert similarity_entropy(tokens_at(np.array([0.0, 1.0]))) == pytest.approx(kernel, abs=1e-3)
    assert similarity_entropy(tokens_at(np.zeros(30))) == pytest.approx(kernel, abs=1e-3)
    # Two groups at a right angle: similarities are 1 or 0, two kernels far apart, and the entropy of a coin
    # more.
    groups = tokens_at(np.repeat([0.0, math.pi / 2], 40))
    same, across = 2 * 40 * 39 / 2, 40 * 40
    share = same / (same + across)
    coin = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert similarity_entropy(groups) == pytest.approx(kernel + coin, abs=1e-3)


def test_entropy_is_that_of_the_density_summed_pair_by_pair() -> None:
    tokens = np.random.default_rng(1).normal(size=(25, 4))
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(25) for j in range(i)]
    axis = np.linspace(-1.1, 1.1, 22_001)
    density = np.mean(
        [np.exp(-0.5 * ((axis - pair) / 0.01) ** 2) / (0.01 * math.sqrt(2.0 * math.pi)) for pair in pairs],
        axis=0,
    )
    expected = -np.sum(density * np.log(np.maximum(density, 1e-300))) * (axis[1] - axis[0])
    assert similarity_entropy(tokens) == pytest.approx(expected, abs=2e-3)


def test_entropy_knows_direction_only_and_survives_empty_tokens() -> None:
    tokens = np.random.default_rng(0).normal(size=(20, 5))
    assert similarity_entropy(tokens * np.linspace(0.1, 9.0, 20)[:, None]) == pytest.approx(
        similarity_entropy(tokens), rel=1e-9
    )
    assert math.isfinite(similarity_entropy(np.zeros((4, 5))))


class Plain(nn.Module):
    """LayerNorm over pooled features and over whole maps, but over no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.norm, self.head = nn.LayerNorm((3, SIDE, SIDE)), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.maps(x).mean((2, 3))))


def test_a_model_without_statistics_is_refused_by_name() -> None:
    scores = ModelScores(float_model(Plain()))
    with pytest.raises(
        BadOptionError,
        match="tests:model has neither BatchNorm layers nor LayerNorm layers over patch tokens",
    ) as caught:
        scores.statistics(smooth(3, seed=0))
    assert "--keep-energy" in str(caught.value.hint)
    assert scores.energy(smooth(3, seed=0)).shape == (3,)


def test_the_model_is_left_as_it_was(cnn: FloatModel) -> None:
    before = {name: value.clone() for name, value in cnn.module.state_dict().items()}
    scores = ModelScores(cnn)
    first = scores.statistics(smooth(6, seed=1))[0]
    with pytest.raises(UnsupportedModelError):
        ModelScores(float_model(Mixing())).statistics(smooth(4, seed=0))
    assert all(torch.equal(value, before[name]) for name, value in cnn.module.state_dict().items())
    assert not any(module._forward_pre_hooks for module in cnn.module.modules())
    np.testing.assert_array_equal(scores.statistics(smooth(6, seed=1))[0], first)


def test_it_is_what_the_filters_take(cnn: FloatModel) -> None:
    scores: ImageScores = ModelScores(cnn)
    assert scores.energy(smooth(2, seed=0)).shape == (2,)
