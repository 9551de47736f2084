"""Train the generator's autoencoder: 32x32 pixels to 8x8 latents and back, so that a classifier sees the same
in both.

    python -m training.autoencoder --data FOLDER --out WORK

`AutoencoderTiny` of diffusers (the architecture of TAESD): ReLU convolutions without normalisation, several
times faster on a CPU than AutoencoderKL. Losses: absolute pixel error, features and predictions of our own
classifier, and a linear map from the latents to that classifier's last stage, which gives the latents a
meaning that a denoiser learns faster (Yao et al. 2025, "Reconstruction vs. generation", VA-VAE). Noise on the
latents takes the place of a variational bottleneck: the decoder learns to forgive a denoiser's errors.
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
from safetensors.torch import save_file
from torch import Tensor, nn

from training import cifar10
from training.checkpoint import resume, save_parts
from training.features import LAST_STAGE, Classifier, feature_loss

LATENT_CHANNELS = 12
_WIDTH = 64
_BATCH = 64
LATENT_NOISE = 0.15
"""Standard deviation of the noise on the latents, which have unit variance."""


def make_autoencoder() -> AutoencoderTiny:
    """The untrained autoencoder."""
    return AutoencoderTiny(
        in_channels=3,
        out_channels=3,
        encoder_block_out_channels=(_WIDTH,) * 3,
        decoder_block_out_channels=(_WIDTH,) * 3,
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 3, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


class _Trained(nn.Module):
    """The autoencoder with the map from latents to features, which is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = make_autoencoder()
        self.to_features = nn.Conv2d(LATENT_CHANNELS, LAST_STAGE[0], 3, padding=1)

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.autoencoder.encoder(pixels)
        return self.autoencoder.decoder(latents + LATENT_NOISE * noise), latents, self.to_features(latents)


def to_pixels(images: Tensor) -> Tensor:
    """Uint8 [N, 3, H, W] to float32 in [-1, 1], channels last."""
    return (images.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def train(data: Path, out: Path, *, steps: int, peak: float, device: torch.device) -> None:
    """Train, keep a checkpoint every 500 steps, write the folder `vae` at the end."""
    images, _ = cifar10.training_images(data)
    held_out, held_out_labels = cifar10.held_out_images(data)
    classifier = Classifier(out / "resnet20.safetensors").to(device)
    torch.manual_seed(1)
    model = _Trained().to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))
    )
    path = out / "autoencoder.ckpt"
    parts = {"model": model, "average": average, "optimiser": optimiser, "schedule": schedule}
    first = resume(path, parts)
    started = time.perf_counter()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(images), (_BATCH,), generator=generator)
        pixels = to_pixels(cifar10.crop_and_flip(images[chosen], generator=generator, padding=2).to(device))
        noise = torch.randn((_BATCH, LATENT_CHANNELS, 8, 8), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded, latents, mapped = model(pixels, noise)
            got = classifier(decoded)
            with torch.no_grad():
                wanted = classifier(pixels)
        latents = latents.float()
        pixel = F.l1_loss(decoded.float(), pixels)
        feature = feature_loss(got, wanted)
        meaning = 1.0 - F.cosine_similarity(mapped.float(), wanted.stages[-1].float(), dim=1).mean()
        spread = (
            latents.mean(dim=(0, 2, 3)).square() + (latents.var(dim=(0, 2, 3)) + 1e-6).log().square()
        ).mean()
        loss = 4.0 * pixel + 0.5 * feature + 0.25 * meaning + 0.1 * spread
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if (step + 1) % 250 == 0:
            rate = (step + 1 - first) / (time.perf_counter() - started)
            print(
                f"step {step + 1}/{steps}  pixel {pixel.item():.4f}  feature {feature.item():.3f}  "
                f"meaning {meaning.item():.3f}"
                f"  spread {spread.item():.3f}  norm {norm.item():.2f}  {rate:.2f} steps/s",
                flush=True,
            )
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            psnr, agreed = quality(
                average.module.autoencoder, classifier, held_out, held_out_labels, device=device
            )
            print(
                (
                    f"step {step + 1}: held-out PSNR {psnr:.2f} dB, our ResNet-20 finds the class in "
                    f"{agreed:.1f} %"
                ),
                flush=True,
            )
            save_parts(path, parts, done=step + 1)
    finish(average.module.autoencoder, images, out / "vae", device=device)
    kept = {
        name: value.detach().cpu().contiguous()
        for name, value in average.module.to_features.state_dict().items()
    }
    save_file(kept, out / "to_features.safetensors")


@torch.no_grad()
def quality(
    model: AutoencoderTiny, classifier: Classifier, images: Tensor, labels: Tensor, *, device: torch.device
) -> tuple[float, float]:
    """Mean PSNR in dB after rounding to bytes, and the classifier's top-1 on the decoded images in
    percent.
    """
    decibel, right = 0.0, 0
    for start in range(0, len(images), 256):
        pixels = to_pixels(images[start : start + 256].to(device))
        decoded = (
            (model.decoder(model.encoder(pixels)).clamp(-1.0, 1.0) + 1.0) * 127.5
        ).round() / 127.5 - 1.0
        decibel += float((10.0 * torch.log10(4.0 / (decoded - pixels).square().mean(dim=(1, 2, 3)))).sum())
        right += int((classifier(decoded).logits.argmax(1).cpu() == labels[start : start + 256]).sum())
    return decibel / len(images), 100.0 * right / len(images)


@torch.no_grad()
def finish(model: AutoencoderTiny, images: Tensor, folder: Path, *, device: torch.device) -> None:
    """Write the autoencoder with the scaling factor that gives its latents unit variance."""
    latents = torch.cat(
        [
            model.encoder(to_pixels(images[start : start + 256].to(device))).cpu()
            for start in range(0, 5120, 256)
        ]
    )
    model.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 4))
    model.cpu().to(memory_format=torch.contiguous_format).save_pretrained(folder)
    largest = float(latents.abs().max())
    print(
        f"latents: mean {float(latents.mean()):.3f}, standard deviation {float(latents.std()):.3f}, "
        f"largest {largest:.2f}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_train_webp.zip")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder with resnet20.safetensors, for checkpoints and weights",
    )
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    train(given.data, given.out, steps=given.steps, peak=given.peak, device=torch.device(given.device))


if __name__ == "__main__":
    main()
