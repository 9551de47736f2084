"""Train the generator's denoiser on latents: a text-conditioned U-Net that predicts v.

    python -m training.denoiser --out WORK

v-prediction (Salimans and Ho 2022) on a cosine schedule (Nichol and Dhariwal 2021), min-SNR weights with
gamma 5 (Hang et al. 2023), captions dropped for classifier-free guidance (Ho and Salimans 2022), inner
features aligned with a classifier's (Yu et al. 2024, "Representation alignment for generation", REPA) and an
exponential moving average of the weights. The text conditions every residual block through the time
embedding, and the innermost ones through cross-attention. Batches have fixed shares of single images and
composites.
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from training.autoencoder import LATENT_CHANNELS
from training.captions import caption
from training.checkpoint import resume, save_parts
from training.features import LAST_STAGE
from training.latents import LatentSet, read_latents
from training.text import TEXT_WIDTH, embed

#: Noise schedule of training and of the shipped scheduler.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}

_CHANNELS = (128, 160)
_GAMMA = 5.0
_DROPPED = 0.1
_ALIGNMENT = 0.3
#: Parts of a batch by how many classes an image shows. Composites of three are what the default prompts ask
#: for, so they are drawn more
#: often than the set has them.
_SHARES = {1: 0.45, 2: 0.2, 3: 0.3, 4: 0.05}


def make_denoiser() -> UNet2DConditionModel:
    """The untrained denoiser."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=_CHANNELS,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        time_embedding_dim=256,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


class _Trained(nn.Module):
    """The U-Net with the map from its inner features to a classifier's, which is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = make_denoiser()
        self.to_features = nn.Sequential(
            nn.Conv2d(_CHANNELS[1], 256, 1), nn.SiLU(), nn.Conv2d(256, LAST_STAGE[0], 1)
        )
        self.inner: list[Tensor] = []
        self.unet.up_blocks[0].register_forward_hook(
            lambda _module, _inputs, output: self.inner.append(output)
        )

    def forward(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        self.inner.clear()
        predicted = self.unet(noisy, timestep, text, return_dict=False)[0]
        return predicted, self.to_features(self.inner.pop())


@dataclass(frozen=True, kw_only=True)
class _Bank:
    """Many captions with their embeddings, by the ordered classes that they name."""

    embeddings: Tensor
    rows: dict[tuple[int, ...], list[int]]
    empty: int


def _make_bank(out: Path, classes: Tensor) -> _Bank:
    chance = random.Random(5)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    texts = [""]
    rows: dict[tuple[int, ...], list[int]] = {}
    present = sorted({tuple(index for index in row if index >= 0) for row in classes.tolist()})
    for named in present:
        for _ in range({1: 200, 2: 12, 3: 2, 4: 1}[len(named)]):
            rows.setdefault(named, []).append(len(texts))
            texts.append(caption(named, chance=chance))
    return _Bank(embeddings=embed(encoder, tokenizer, texts), rows=rows, empty=0)


def _captions_of(bank: _Bank, classes: Tensor, *, chance: random.Random) -> Tensor:
    """One caption's row for each image, in the order in which its classes stand."""
    picked: list[int] = []
    for row in classes.tolist():
        named = tuple(index for index in row if index >= 0)
        picked.append(bank.empty if chance.random() < _DROPPED else chance.choice(bank.rows[named]))
    return torch.tensor(picked)


def chances(classes: Tensor, *, shares: Mapping[int, float]) -> Tensor:
    """How likely each image is to be drawn, so that batches have these shares of images of one, two, ...
    classes.

    Args:
        classes: int8 [N, 4], class indices, -1 where there are fewer.
        shares: by number of classes; they need not sum to one, and a number that no image has counts for
            nothing.

    Returns:
        float32 [N], not normalised.
    """
    named = (classes >= 0).sum(1)
    present = torch.bincount(named, minlength=max(shares) + 1).clamp_min(1)
    wanted = torch.tensor([shares.get(k, 0.0) for k in range(len(present))])
    return (wanted / present)[named]


def train(
    out: Path,
    *,
    start: Path | None,
    steps: int,
    batch: int,
    peak: float,
    compiled: bool,
    device: torch.device,
) -> None:
    """Train, from the U-Net in `start` if there is one, keep a checkpoint every 500 steps, write the folder
    `unet` at the end.
    """
    latents: LatentSet = read_latents(out / "latents.safetensors")
    bank = _make_bank(out, latents.classes)
    print(f"{len(latents.latents)} latents, {len(bank.embeddings)} captions", flush=True)
    torch.manual_seed(4)
    likely = chances(latents.classes, shares=_SHARES)
    model = _Trained()
    if start is not None:
        model.unet.load_state_dict(UNet2DConditionModel.from_pretrained(start).float().state_dict())
    model = model.to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model.unet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9985)
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(
            (step + 1) / 300, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))
        ),
    )
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    parts = {"model": model, "average": average, "optimiser": optimiser, "schedule": schedule}
    # Its own file, so that the run that it goes on from is not taken for it.
    path = out / ("denoiser.ckpt" if start is None else "denoiser_further.ckpt")
    first = resume(path, parts)
    forward = torch.compile(model) if compiled else model
    started, shown = time.perf_counter(), first
    running = torch.zeros(2)
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        chance = random.Random(step)
        chosen = torch.multinomial(likely, batch, replacement=True, generator=generator)
        clean = latents.latents[chosen].float().to(device).contiguous(memory_format=torch.channels_last)
        noise = (
            torch.randn(clean.shape, generator=generator)
            .to(device)
            .contiguous(memory_format=torch.channels_last)
        )
        timestep = torch.randint(0, len(alphas), (batch,), generator=generator).to(device)
        text = bank.embeddings[_captions_of(bank, latents.classes[chosen], chance=chance)].to(device)
        alpha = alphas[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1.0 - alpha).sqrt() * clean
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted, mapped = forward(noisy, timestep, text)
        ratio = alpha / (1.0 - alpha)
        weight = ratio.clamp(max=_GAMMA) / (ratio + 1.0)
        denoising = (weight * (predicted.float() - target).square()).mean()
        features = latents.features[chosen].to(device).float()
        alignment = 1.0 - F.cosine_similarity(mapped.float(), features, dim=1).mean()
        optimiser.zero_grad(set_to_none=True)
        (denoising + _ALIGNMENT * weight.mean() * alignment).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(model.unet)
        running += torch.tensor([denoising.item(), alignment.item()])
        if (step + 1) % 100 == 0:
            rate = (step + 1 - shown) / (time.perf_counter() - started)
            shown, started = step + 1, time.perf_counter()
            losses = f"denoising {running[0] / 100:.4f}  alignment {running[1] / 100:.3f}"
            print(f"step {step + 1}/{steps}  {losses}  {rate:.2f} steps/s", flush=True)
            running.zero_()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_parts(path, parts, done=step + 1)
            average.module.save_pretrained(out / "unet")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder with latents.safetensors, tokenizer and text_encoder"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="folder of a trained unet to go on from, with a fresh optimiser; it may be WORK/unet",
    )
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=6e-4, help="highest learning rate")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the U-Net: a minute at the start, a quarter less per step",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    train(
        given.out,
        start=given.start,
        steps=given.steps,
        batch=given.batch,
        peak=given.peak,
        compiled=given.compile,
        device=torch.device(given.device),
    )


if __name__ == "__main__":
    main()
