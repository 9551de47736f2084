"""The parts before any training: shapes, sizes, and that what is put together is a pipeline like any
other.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from timm.models import VisionTransformer

from training.assemble import assemble
from training.autoencoder import finish, make_autoencoder
from training.captions import caption, write_tokenizer
from training.denoiser import make_denoiser
from training.text import make_text_encoder, random_classes
from training.vit import start_attention


@pytest.fixture(scope="module")
def into(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("work")
    chance = random.Random(0)
    tokenizer = write_tokenizer(
        out / "tokenizer", texts=[caption(random_classes(chance), chance=chance) for _ in range(1000)]
    )
    torch.manual_seed(0)
    make_text_encoder(tokenizer).save_pretrained(out / "text_encoder")
    make_denoiser().save_pretrained(out / "unet")
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    finish(make_autoencoder(), images, out / "vae_textured", device=torch.device("cpu"))
    made = tmp_path_factory.mktemp("package")
    assemble(out, made)
    return made


def test_is_a_pipeline_that_diffusers_loads(into: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(into / "generator", torch_dtype=torch.float32)
    assert isinstance(pipeline, StableDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    images = pipeline(
        prompt=["a cat", "a dog and a ship"], num_inference_steps=2, generator=noise, output_type="np"
    ).images
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(images).all()


def test_fits_the_package(into: Path) -> None:
    assert sum(path.stat().st_size for path in into.rglob("*.safetensors")) < 20e6


def test_says_nothing_of_the_folder_it_came_from(into: Path) -> None:
    for path in into.rglob("*.json"):
        assert str(into.parent) not in path.read_text(encoding="utf-8")


def test_attention_starts_with_queries_like_keys_and_values_undone() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=1, num_heads=3, num_classes=10)
    start_attention(model)
    attention = model.blocks[0].attn
    query, key, value = attention.qkv.weight.detach().chunk(3)
    scores = sum(query[rows].T @ key[rows] for rows in (slice(0, 32), slice(32, 64), slice(64, 96)))
    assert torch.trace(scores) / 96 > 0.2
    assert torch.trace(attention.proj.weight.detach() @ value) / 96 == pytest.approx(-0.4, abs=0.1)
