"""Train the vision transformer that mixport ships, with our ResNet-20 as its teacher.

    python -m training.vit --data FOLDER --out WORK

Consistent teaching (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent"):
teacher and student see the same crops and the same mixtures of two images (Zhang et al. 2018, mixup), and the
student learns the teacher's predictions. Its last 64 tokens also learn the 8x8 places of the teacher's last
stage, place by place (Romero et al. 2015, "FitNets: hints for thin deep nets"): far more to learn from an
image than ten numbers. Muon (Jordan et al. 2024) steps the matrices of the blocks, AdamW the rest. Attention
starts as Trockman and Kolter 2023 ("Mimetic initialization of self-attention layers") found it in trained
models, which spares a small data set the way there.
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
from safetensors.torch import save_file
from torch import Tensor, nn

from mixport.model.shipped.cifar_vit import cifar_vit
from training import cifar10
from training.autoencoder import to_pixels
from training.checkpoint import resume, save_parts
from training.classifier import MEAN, STD, top1
from training.features import LAST_STAGE, Classifier

_BATCH = 192
_TEMPERATURE = 2.0
_TRUTH = 0.3
"""Share of the labels in the loss; the teacher has the rest."""


@torch.no_grad()
def start_attention(model: nn.Module) -> None:
    """Queries and keys whose product is near 0.7 I, values and projection near -0.4 I, each with some
    noise.
    """
    for block in model.blocks:
        attention = block.attn
        width, heads = attention.proj.in_features, attention.num_heads
        side = width // heads
        query, key, value = attention.qkv.weight.chunk(3)
        for head in range(heads):
            rows = slice(head * side, (head + 1) * side)
            left, scales, right = torch.linalg.svd(
                0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width)
            )
            root = scales[:side].sqrt()
            query[rows] = (left[:, :side] * root).T
            key[rows] = root[:, None] * right[:side]
        left, scales, right = torch.linalg.svd(
            0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width)
        )
        value.copy_(scales.sqrt()[:, None] * right)
        attention.proj.weight.copy_(left * scales.sqrt())


def train(data: Path, out: Path, *, epochs: int, peak: float, device: torch.device) -> None:
    """Train, keep a checkpoint after every epoch, write `vit.safetensors` (float16) at the end."""
    images, labels = cifar10.training_images(data)
    held_out, held_out_labels = cifar10.held_out_images(data)
    teacher = Classifier(out / "resnet20.safetensors").to(device)
    torch.manual_seed(6)
    model = cifar_vit()
    start_attention(model)
    for block in model.blocks:
        # The fused kernel's backward pass is several times slower than plain products on CPUs at this size.
        block.attn.fused_attn = device.type != "cpu"
    model = model.to(device)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    hint = nn.Linear(model.embed_dim, LAST_STAGE[0]).to(device)
    steps = len(images) // _BATCH
    matrices = [value for value in model.blocks.parameters() if value.ndim == 2]
    chosen = {id(value) for value in matrices}
    others = [value for value in [*model.parameters(), *hint.parameters()] if id(value) not in chosen]
    optimisers = {
        "muon": torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        "adamw": torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    }
    total, warm = epochs * steps, steps
    schedules = {
        f"{name} schedule": torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total))),
        )
        for name, optimiser in optimisers.items()
    }
    parts = {"model": model, "hint": hint, "average": average, **optimisers, **schedules}
    path = out / "vit.ckpt"
    first = resume(path, parts)
    for epoch in range(first, epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(1000 + epoch)
        order = torch.randperm(len(images), generator=generator)
        model.train()
        running = 0.0
        for step in range(steps):
            chosen = order[step * _BATCH : (step + 1) * _BATCH]
            pixels = to_pixels(cifar10.crop_and_flip(images[chosen], generator=generator).to(device))
            share = _mixing_share(generator)
            pixels = share * pixels + (1.0 - share) * pixels.flip(0)
            truth = F.one_hot(labels[chosen].to(device), 10).float()
            truth = share * truth + (1.0 - share) * truth.flip(0)
            with torch.autocast(device.type, torch.bfloat16):
                with torch.no_grad():
                    seen = teacher(pixels)
                tokens = model.forward_features(_standardised(pixels))
                logits, hinted = model.forward_head(tokens), hint(tokens)
            wanted = seen.stages[-1].float().flatten(2).transpose(1, 2)
            loss = _loss(logits.float(), seen.logits.float(), truth)
            loss = loss + (hinted.float() - wanted).square().mean() / wanted.square().mean()
            for optimiser in optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in [*optimisers.values(), *schedules.values()]:
                part.step()
            average.update_parameters(model)
            running += loss.item()
        accuracy = top1(average.module, held_out, held_out_labels, device=device)
        seconds = time.perf_counter() - started
        print(
            (
                f"epoch {epoch + 1}/{epochs}  loss {running / steps:.4f}  held-out top-1 {accuracy:.2f}  "
                f"{seconds:.0f} s"
            ),
            flush=True,
        )
        save_parts(path, parts, done=epoch + 1)
    kept = {
        name: value.detach().half().cpu().contiguous() for name, value in average.module.state_dict().items()
    }
    average.module.load_state_dict({name: value.float() for name, value in kept.items()})
    test, test_labels = cifar10.test_images(data)
    print(f"test top-1 {top1(average.module, test, test_labels, device=device):.2f}")
    save_file(kept, out / "vit.safetensors")


def _loss(logits: Tensor, taught: Tensor, truth: Tensor) -> Tensor:
    student = F.log_softmax(logits / _TEMPERATURE, dim=1)
    teacher = F.log_softmax(taught / _TEMPERATURE, dim=1)
    learned = F.kl_div(student, teacher, log_target=True, reduction="batchmean") * _TEMPERATURE**2
    return (1.0 - _TRUTH) * learned + _TRUTH * F.cross_entropy(logits, truth)


def _mixing_share(generator: torch.Generator) -> float:
    """Half of the batches stay as they are; the others are mixed evenly distributed."""
    drawn = float(torch.rand((), generator=generator))
    return 1.0 if drawn < 0.5 else drawn


def _standardised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels + 1.0) / 2.0 - mean) / std


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with cifar10_train_webp.zip and cifar10_test.npz"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder with resnet20.safetensors, for checkpoints and weights",
    )
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    train(given.data, given.out, epochs=given.epochs, peak=given.peak, device=torch.device(given.device))


if __name__ == "__main__":
    main()
