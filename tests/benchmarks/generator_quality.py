"""How good the embedded generator is, judged by a classifier that took no part in its training.

    python -m tests.benchmarks.generator_quality --data ../shared/data

Draws 1,000 images each of one, two and three classes through mixport's own calibration stage, and reports, as
text and with `--json`:

- single: share of images whose top-1 is the prompted class, overall and for each class;
- pairs: share with at least one of the two prompted classes in the top-2, and with both;
- triples: share with at least two of the three prompted classes in the top-3, and with all;
- distances: nearest neighbour inside each set and in the training set, root mean square in grey levels. Real
  test images give the yardstick: a generator that copies training images has distances far below theirs.

The judge is the CIFAR-10 ResNet-56 of the data folder. For choosing guidance and steps use `--judge` with our
own ResNet-20 instead, so that the judge stays a judge: `--judge mixport/builtin/cifar10-resnet20.safetensors
--depth 20`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from mixport import builtin
from mixport.calibration.calibrate import calibrate
from mixport.calibration.prompts.prompts import prompts
from mixport.calibration.recipe import GeneratorSettings, PromptRecipe, Strategy, parse_calibration
from mixport.cli.console import Console
from mixport.model.shipped.cifar_resnet import BLOCKS, CifarResNet
from mixport.records.calibration_set import Preprocessing
from mixport.storage.images import normalise
from mixport.storage.store import Store
from training import cifar10

_PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Pixels = NDArray[np.uint8]


def draw(
    strategy: Strategy, *, named: int, count: int, settings: GeneratorSettings, seed: int, cache: Path
) -> tuple[Pixels, list[tuple[int, ...]]]:
    """Images uint8 [N, 32, 32, 3] and the classes of each prompt, of which there are `named`."""
    recipe = PromptRecipe(strategy=strategy, class_names=cifar10.CLASSES, classes_per_prompt=named, seed=seed)
    asked = parse_calibration(
        strategy, images=count, seed=seed, preprocessing=_PREPROCESSING, prompts=recipe, generator=settings
    )
    made = calibrate(asked, store=Store(cache), progress=Console(json=False, quiet=False))
    return np.load(made.images_path), [prompt.classes for prompt in prompts(recipe, count=count)]


def judge(images: Pixels, *, weights: Path, depth: int) -> torch.Tensor:
    """Logits, float32 [N, 10]."""
    model = CifarResNet(BLOCKS[depth])
    model.load_state_dict(load_file(weights), strict=False)
    model.eval()
    inputs = torch.from_numpy(normalise(images, preprocessing=_PREPROCESSING))
    with torch.inference_mode():
        return torch.cat([model(inputs[start : start + 250]) for start in range(0, len(inputs), 250)])


def nearest(images: Pixels, others: Pixels, *, itself: bool) -> NDArray[np.float64]:
    """Root mean square distance in grey levels to the nearest of `others`, or of its mirror images."""
    mine = torch.from_numpy(images.reshape(len(images), -1)).float()
    best = torch.full((len(images),), torch.inf)
    for mirrored in (False, True):
        theirs = torch.from_numpy(
            (others[:, :, ::-1] if mirrored else others).reshape(len(others), -1).copy()
        ).float()
        for start in range(0, len(theirs), 5000):
            distance = torch.cdist(mine, theirs[start : start + 5000])
            if itself and not mirrored:
                distance[torch.arange(len(mine)), torch.arange(len(mine))] = torch.inf
            best = torch.minimum(best, distance.min(dim=1).values)
    return (best / images[0].size ** 0.5).double().numpy()


def decoded(images: Pixels, *, folder: Path) -> Pixels:
    """Images after a round trip through the generator's autoencoder: no denoiser can do better than its
    decoder.
    """
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny.from_pretrained(folder / "vae")
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        back = torch.cat([model.decode(model.encode(part).latents).sample for part in pixels.split(250)])
    return ((back.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def found_classes(
    images: Pixels, classes: list[tuple[int, ...]], *, weights: Path, depth: int
) -> NDArray[np.int64]:
    """How many of the k prompted classes are among the k likeliest ones, int64 [N]."""
    likeliest = judge(images, weights=weights, depth=depth).topk(len(classes[0]), dim=1).indices.tolist()
    return np.array([len(set(one) & set(two)) for one, two in zip(likeliest, classes, strict=True)])


def _spread(distances: NDArray[np.float64]) -> dict[str, float]:
    return {"least": round(float(distances.min()), 2), "median": round(float(np.median(distances)), 2)}


def measure(
    *,
    data: Path,
    weights: Path,
    depth: int,
    count: int,
    settings: GeneratorSettings,
    seed: int,
    cache: Path,
    distances: bool,
) -> dict[str, object]:
    """All figures, ready for JSON."""
    singles, classes = draw("single", named=1, count=count, settings=settings, seed=seed, cache=cache)
    wanted = torch.tensor([one[0] for one in classes])
    right = judge(singles, weights=weights, depth=depth).argmax(1) == wanted
    by_class = {
        name: round(100.0 * float(right[wanted == index].float().mean()), 1)
        for index, name in enumerate(cifar10.CLASSES)
    }
    pairs, named = draw("mixup", named=2, count=count, settings=settings, seed=seed, cache=cache)
    of_two = found_classes(pairs, named, weights=weights, depth=depth)
    triples, named = draw("mixup", named=3, count=count, settings=settings, seed=seed, cache=cache)
    of_three = found_classes(triples, named, weights=weights, depth=depth)
    result: dict[str, object] = {
        "images": count,
        "single_top1": round(100.0 * float(right.float().mean()), 1),
        "by_class": by_class,
        "pair_any": round(100.0 * float((of_two > 0).mean()), 1),
        "pair_both": round(100.0 * float((of_two == 2).mean()), 1),
        "triple_two": round(100.0 * float((of_three > 1).mean()), 1),
        "triple_all": round(100.0 * float((of_three == 3).mean()), 1),
    }
    if settings.source == "builtin":
        real, labels = (part[:1500] for part in cifar10.test_images(data))
        pixels = real.permute(0, 2, 3, 1).contiguous().numpy()
        for name, shown in (
            ("real test images", pixels),
            ("the same, decoded", decoded(pixels, folder=builtin.generator_folder())),
        ):
            found_class = judge(shown, weights=weights, depth=depth).argmax(1)
            result[f"{name}: top-1"] = round(100.0 * float((found_class == labels).float().mean()), 1)
    if not distances:
        return result
    train = cifar10.training_images(data)[0].permute(0, 2, 3, 1).contiguous().numpy()
    test = cifar10.test_images(data)[0][:count].permute(0, 2, 3, 1).contiguous().numpy()
    for name, images in (
        ("single", singles),
        ("pairs", pairs),
        ("triples", triples),
        ("real test images", test),
    ):
        result[f"{name}: nearest in the set"] = _spread(nearest(images, images, itself=True))
        result[f"{name}: nearest training image"] = _spread(nearest(images, train, itself=False))
    return result


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with CIFAR-10 and the judge's weights"
    )
    parser.add_argument(
        "--judge",
        type=Path,
        help="weights of the judge (default: cifar10_resnet56.safetensors of the data folder)",
    )
    parser.add_argument("--depth", type=int, default=56, choices=sorted(BLOCKS))
    parser.add_argument("--generator", default="builtin")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-distances", action="store_true", help="leave out the nearest neighbours, a minute of work"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            data=given.data,
            weights=given.judge or given.data / "cifar10_resnet56.safetensors",
            depth=given.depth,
            count=given.images,
            settings=GeneratorSettings(source=given.generator, steps=given.steps, guidance=given.guidance),
            seed=given.seed,
            cache=Path(folder),
            distances=not given.no_distances,
        )
    if given.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
