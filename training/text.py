"""Train the generator's text encoder: a two-layer CLIP text model that knows which classes a caption names
and what they look like.

Its hidden states predict the classes of the caption and their mean features under our ResNet-20, so that
similar classes lie close together, as in CLIP (Radford et al. 2021). A minute on a CPU; it is frozen
afterwards.
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.captions import MAX_TOKENS, caption, write_tokenizer
from training.cifar10 import CLASSES

TEXT_WIDTH = 128
_BATCH = 128


def random_classes(chance: random.Random) -> tuple[int, ...]:
    """No class, one, or up to four different ones, in a random order."""
    count = chance.choices((0, 1, 2, 3, 4), weights=(2, 40, 40, 10, 8))[0]
    return tuple(chance.sample(range(len(CLASSES)), count))


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder for a tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_text_encoder(folder: Path, *, looks: Tensor, steps: int = 1500) -> None:
    """Write the folders `tokenizer` and `text_encoder`.

    Args:
        folder: where they go.
        looks: mean feature of each class, float32 [10, F].
        steps: of 128 captions.
    """
    chance = random.Random(0)
    tokenizer = write_tokenizer(
        folder / "tokenizer", texts=[caption(random_classes(chance), chance=chance) for _ in range(20000)]
    )
    torch.manual_seed(2)
    model = make_text_encoder(tokenizer)
    centred = F.normalize(looks - looks.mean(0), dim=1)
    to_classes = nn.Linear(TEXT_WIDTH, len(CLASSES))
    to_looks = nn.Linear(TEXT_WIDTH, centred.shape[1])
    parameters = [*model.parameters(), *to_classes.parameters(), *to_looks.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        named = [random_classes(chance) for _ in range(_BATCH)]
        truth = torch.zeros(_BATCH, len(CLASSES))
        for row, classes in enumerate(named):
            truth[row, list(classes)] = 1.0
        hidden = _hidden(model, tokenizer, [caption(classes, chance=chance) for classes in named]).mean(1)
        wanted = truth @ centred / truth.sum(1, keepdim=True).clamp(min=1.0)
        loss = (
            F.binary_cross_entropy_with_logits(to_classes(hidden), truth)
            + (to_looks(hidden) - wanted).square().sum(1).mean()
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            right = ((to_classes(hidden) > 0) == (truth > 0)).all(1).float().mean()
            print(
                (
                    f"text encoder {step + 1}/{steps}: loss {loss.item():.4f}, all classes right in "
                    f"{100.0 * right:.1f} %"
                ),
                flush=True,
            )
    model.eval().save_pretrained(folder / "text_encoder")


@torch.no_grad()
def embed(model: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Hidden states as a Stable Diffusion pipeline computes them, float32 [N, MAX_TOKENS, TEXT_WIDTH]."""
    return torch.cat(
        [_hidden(model, tokenizer, texts[start : start + 256]) for start in range(0, len(texts), 256)]
    )


def _hidden(model: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return model(tokens.input_ids).last_hidden_state
