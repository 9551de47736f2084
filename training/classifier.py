"""Train a classifier that mixport ships: the CIFAR-10 ResNet-20, or the ViT with the ResNet's help.

    python -m training.classifier resnet20 --data FOLDER --out WORK

SGD with Nesterov momentum, one triangular cycle of the learning rate (Smith and Topin 2018,
"Super-convergence"), random crops and flips, an exponential moving average of the weights over the last part.
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mixport.model.shipped.cifar_resnet import BLOCKS, CifarResNet
from training import cifar10
from training.checkpoint import resume, save_parts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_BATCH = 128
_EMA_DECAY = 0.998


def train_resnet20(data: Path, out: Path, *, epochs: int, peak: float, device: torch.device) -> None:
    """Train, keep a checkpoint after every epoch, write `resnet20.safetensors` at the end."""
    images, labels = cifar10.training_images(data)
    held_out, held_out_labels = cifar10.held_out_images(data)
    torch.manual_seed(0)
    model = CifarResNet(BLOCKS[20]).to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(_EMA_DECAY), use_buffers=True
    )
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=peak, momentum=0.9, nesterov=True)
    steps = len(images) // _BATCH
    total = epochs * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(step / (0.2 * total) + 0.01, (total - step) / (0.8 * total))
    )
    parts = {"model": model, "average": average, "optimiser": optimiser, "schedule": schedule}
    path = out / "resnet20.ckpt"
    first = resume(path, parts)
    for epoch in range(first, epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(images), generator=generator)
        model.train()
        running = 0.0
        for step in range(steps):
            chosen = order[step * _BATCH : (step + 1) * _BATCH]
            batch = cifar10.crop_and_flip(images[chosen], generator=generator).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(cifar10.normalise(batch, mean=MEAN, std=STD))
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device), label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
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
    test, test_labels = cifar10.test_images(data)
    print(f"test top-1 {top1(average.module, test, test_labels, device=device):.2f}")
    kept = {name: value.detach().cpu().contiguous() for name, value in average.module.state_dict().items()}
    save_file(
        {name: value for name, value in kept.items() if not name.endswith("num_batches_tracked")},
        out / "resnet20.safetensors",
    )


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, *, device: torch.device) -> float:
    """Accuracy in percent, in float32."""
    model.eval()
    right = 0
    for start in range(0, len(images), 500):
        batch = cifar10.normalise(images[start : start + 500].to(device), mean=MEAN, std=STD)
        right += int((model(batch).argmax(1).cpu() == labels[start : start + 500]).sum())
    return 100.0 * right / len(images)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["resnet20"])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with cifar10_train_webp.zip and cifar10_test.npz"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and weights")
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--peak", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train_resnet20(
        given.data, given.out, epochs=given.epochs, peak=given.peak, device=torch.device(given.device)
    )


if __name__ == "__main__":
    main()
