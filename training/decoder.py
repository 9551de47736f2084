"""Train the autoencoder's decoder on, so that what it draws has the texture of photographs.

    python -m training.decoder --data FOLDER --out WORK

Pixel and feature losses average over what latents do not tell, so a decoder trained with them leaves out half
of the energy of the finest structures, and a network calibrated on its images sees too little variance in its
first layers. Here what counts is how much fine structure there is in a place, not where exactly: local
energies of two bands of the pixels, local means and deviations of the first two feature maps of our own
classifier. Positions count for what 2 x 2 pixels, later features and predictions hold. The encoder stays as
it is, so latents and denoiser need no training anew.
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from training import cifar10
from training.autoencoder import LATENT_CHANNELS, LATENT_NOISE, quality, to_pixels
from training.checkpoint import resume, save_parts
from training.features import Classifier, Seen, feature_loss

_BATCH = 64
_WINDOW, _STRIDE = 8, 4
"""Places whose energy is compared, in elements of the map: half overlapping."""
_TEXTURED = 2
"""Feature maps, of stem and first stage, that are compared by texture; those behind them place by place."""
_WEIGHTS = {"pixels": 4.0, "features": 0.5, "textures": 30.0, "feature textures": 0.5}


def band_energies(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean squares of the two finest bands in windows of 8 x 8, half overlapping.

    Bands are differences of binomial blurs (the Laplacian pyramid of Burt and Adelson 1983, not subsampled):
    pixels less one 3 x 3 blur, and that less three.

    Args:
        pixels: float32 [N, C, H, W].

    Returns:
        two of [N, C, H', W'].
    """
    once = _blurred(pixels)
    thrice = _blurred(_blurred(once))
    fine, coarse = (
        F.avg_pool2d(band.square(), _WINDOW, _STRIDE).add(1e-5).sqrt()
        for band in (pixels - once, once - thrice)
    )
    return fine, coarse


def texture_distance(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of the energies of both bands."""
    (fine, coarse), (wanted_fine, wanted_coarse) = band_energies(got), band_energies(wanted)
    return (fine - wanted_fine).abs().mean() + (coarse - wanted_coarse).abs().mean()


def feature_texture_distance(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of local means and local deviations of a feature map, in units of its mean
    local deviation.
    """
    (mean, deviation), (wanted_mean, wanted_deviation) = _local(got), _local(wanted)
    return (
        (mean - wanted_mean).abs().mean() + (deviation - wanted_deviation).abs().mean()
    ) / wanted_deviation.mean()


def _blurred(images: Tensor) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    kernel = (row[:, None] * row).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=images.shape[1])


def _local(features: Tensor) -> tuple[Tensor, Tensor]:
    mean = F.avg_pool2d(features, _WINDOW, _STRIDE)
    variance = F.avg_pool2d(features.square(), _WINDOW, _STRIDE) - mean.square()
    return mean, variance.clamp_min(0.0).add(1e-4).sqrt()


def _losses(decoded: Tensor, pixels: Tensor, got: Seen, wanted: Seen) -> dict[str, Tensor]:
    maps = zip(got.stages[:_TEXTURED], wanted.stages[:_TEXTURED], strict=True)
    nothing = torch.zeros((), device=decoded.device)
    return {
        "pixels": F.l1_loss(F.avg_pool2d(decoded, 2), F.avg_pool2d(pixels, 2)),
        "features": feature_loss(got, wanted, first=_TEXTURED),
        "textures": texture_distance(decoded, pixels),
        "feature textures": sum(
            (feature_texture_distance(mine.float(), theirs.float()) for mine, theirs in maps), nothing
        ),
    }


def train(data: Path, out: Path, *, steps: int, peak: float, device: torch.device) -> None:
    """Train, keep a checkpoint every 250 steps, write the autoencoder with its new decoder to the folder
    `vae_textured`.
    """
    images, _ = cifar10.training_images(data)
    held_out, held_out_labels = cifar10.held_out_images(data)
    classifier = Classifier(out / "resnet20.safetensors").to(device)
    autoencoder = AutoencoderTiny.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last)
    encoder, decoder = autoencoder.encoder.requires_grad_(False), autoencoder.decoder
    average = torch.optim.swa_utils.AveragedModel(
        decoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=peak, betas=(0.5, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))
    )
    parts = {"decoder": decoder, "average": average, "optimiser": optimiser, "schedule": schedule}
    path = out / "decoder.ckpt"
    first = resume(path, parts)
    started = time.perf_counter()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(images), (_BATCH,), generator=generator)
        pixels = to_pixels(cifar10.crop_and_flip(images[chosen], generator=generator, padding=2).to(device))
        noise = torch.randn((_BATCH, LATENT_CHANNELS, 8, 8), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                wanted = classifier(pixels)
                latents = encoder(pixels)
            decoded = decoder(latents + LATENT_NOISE * noise)
            got = classifier(decoded)
        losses = _losses(decoded.float(), pixels, got, wanted)
        optimiser.zero_grad(set_to_none=True)
        sum(
            (_WEIGHTS[name] * loss for name, loss in losses.items()), torch.zeros((), device=device)
        ).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(decoder)
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) / (time.perf_counter() - started)
            shown = "  ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print(f"step {step + 1}/{steps}  {shown}  {rate:.2f} steps/s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_parts(path, parts, done=step + 1)
    decoder.load_state_dict(average.module.state_dict())
    psnr, agreed = quality(autoencoder, classifier, held_out, held_out_labels, device=device)
    print(f"held-out PSNR {psnr:.2f} dB, our ResNet-20 finds the class in {agreed:.1f} %")
    autoencoder.cpu().to(memory_format=torch.contiguous_format).save_pretrained(out / "vae_textured")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_train_webp.zip")
    parser.add_argument("--out", type=Path, required=True, help="folder with resnet20.safetensors and vae")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--peak", type=float, default=3e-4, help="highest learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    train(given.data, given.out, steps=given.steps, peak=given.peak, device=torch.device(given.device))


if __name__ == "__main__":
    main()
