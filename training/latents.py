"""What the denoiser learns from: latents of training images and of composites, with their classes and
features.

python -m training.latents --data FOLDER --out WORK
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import cifar10
from training.autoencoder import to_pixels
from training.composites import composites
from training.features import Classifier
from training.text import train_text_encoder

#: Composites of k classes that are tried; those whose classes our own classifier finds are kept.
TRIED = {2: 60000, 3: 60000, 4: 10000}
MOST_CLASSES = 4
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class LatentSet:
    """Training pairs of the denoiser.

    Attributes:
        latents: float16 [N, C, 8, 8], scaled to unit variance.
        features: float16 [N, 64, 8, 8], last stage of our ResNet-20, per channel standardised.
        classes: int8 [N, 4], class indices, -1 where there are fewer.
    """

    latents: Tensor
    features: Tensor
    classes: Tensor


def read_latents(path: Path) -> LatentSet:
    """The set that `write_latents` wrote."""
    tensors = load_file(path)
    return LatentSet(latents=tensors["latents"], features=tensors["features"], classes=tensors["classes"])


@torch.no_grad()
def write_latents(data: Path, out: Path, *, device: torch.device) -> None:
    """Encode every training image and its mirror image, and composites; train the text encoder on the way."""
    images, labels = cifar10.training_images(data)
    classifier = Classifier(out / "resnet20.safetensors").to(device)
    autoencoder = AutoencoderTiny.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last)
    scale = float(autoencoder.config.scaling_factor)

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
        seen = classifier(pixels)
        return (
            (autoencoder.encoder(pixels) * scale).half().cpu(),
            seen.stages[-1].half().cpu(),
            seen.logits.cpu(),
        )

    latents: list[Tensor] = []
    features: list[Tensor] = []
    classes: list[Tensor] = []
    for mirrored in (False, True):
        for start in range(0, len(images), _BATCH):
            pixels = to_pixels(images[start : start + _BATCH])
            latent, feature, _ = encode(pixels.flip(3) if mirrored else pixels)
            latents.append(latent)
            features.append(feature)
            classes.append(_padded(labels[start : start + _BATCH, None]))
    singles = torch.cat(features)[: len(images)].float()
    pooled = singles.mean(dim=(2, 3))
    looks = torch.stack([pooled[labels == index].mean(0) for index in range(len(cifar10.CLASSES))])
    centre, spread = (
        singles.mean(dim=(0, 2, 3)).view(1, -1, 1, 1),
        singles.std(dim=(0, 2, 3)).view(1, -1, 1, 1),
    )
    generator = torch.Generator().manual_seed(3)
    for k, tried in TRIED.items():
        kept = 0
        for _ in range(tried // _BATCH):
            chosen = torch.randint(0, len(images), (_BATCH, k), generator=generator)
            named = labels[chosen]
            chosen = chosen[_all_different(named)]
            named = labels[chosen]
            parts = to_pixels(images[chosen].flatten(0, 1)).unflatten(0, chosen.shape)
            mirrored = torch.rand((*chosen.shape, 1, 1, 1), generator=generator) < 0.5
            latent, feature, logits = encode(
                composites(torch.where(mirrored, parts.flip(-1), parts), generator=generator)
            )
            found = (logits.topk(k + 1, dim=1).indices[:, None, :] == named[:, :, None]).any(2).sum(1) >= min(
                k, 3
            )
            latents.append(latent[found])
            features.append(feature[found])
            classes.append(_padded(named[found]))
            kept += int(found.sum())
        print(f"composites of {k} classes: {kept} kept", flush=True)
    features = [((feature.float() - centre) / spread).half() for feature in features]
    everything = {
        "latents": torch.cat(latents),
        "features": torch.cat(features),
        "classes": torch.cat(classes),
    }
    save_file({name: value.contiguous() for name, value in everything.items()}, out / "latents.safetensors")
    with torch.enable_grad():
        train_text_encoder(out, looks=looks)


def _padded(classes: Tensor) -> Tensor:
    return torch.nn.functional.pad(classes, (0, MOST_CLASSES - classes.shape[1]), value=-1).to(torch.int8)


def _all_different(named: Tensor) -> Tensor:
    ordered = named.sort(dim=1).values
    return (ordered[:, 1:] != ordered[:, :-1]).all(1)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_train_webp.zip")
    parser.add_argument("--out", type=Path, required=True, help="folder with resnet20.safetensors and vae")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    write_latents(given.data, given.out, device=torch.device(given.device))


if __name__ == "__main__":
    main()
