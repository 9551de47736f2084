"""Tiny random text-to-image pipelines in diffusers format, made of the classes of diffusers and transformers.

Their images mean nothing; their folders, calls and files have the shape of those on the hub.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

#: Tokens of a prompt, start and end included.
LENGTH = 48


def tiny_stable_diffusion(folder: Path, *, seed: int = 0, prudish: bool = False) -> Path:
    """A pipeline of the shape of Stable Diffusion 1.x that draws 16 x 16 images; a prudish one objects to all
    of them.
    """
    torch.manual_seed(seed)
    StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(folder),
        unet=_unet(cross_attention_dim=16),
        scheduler=DPMSolverMultistepScheduler(num_train_timesteps=100, steps_offset=1),
        safety_checker=_safety_checker() if prudish else None,
        feature_extractor=CLIPImageProcessor() if prudish else None,
        requires_safety_checker=prudish,
    ).save_pretrained(folder)
    return folder


def tiny_stable_diffusion_xl(folder: Path) -> Path:
    """A pipeline of the shape of SDXL: two text encoders, pooled embeddings, 16 x 16 images."""
    torch.manual_seed(1)
    StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=_tokenizer(folder),
        tokenizer_2=_tokenizer(folder),
        unet=_unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=EulerDiscreteScheduler(num_train_timesteps=100, steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def tiny_pixart(folder: Path) -> Path:
    """A pipeline of the shape of PixArt: a transformer, T5 embeddings with masks, 16 x 16 images."""
    torch.manual_seed(2)
    PixArtAlphaPipeline(
        vae=_autoencoder(),
        text_encoder=T5EncoderModel(
            T5Config(
                vocab_size=1000,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                is_encoder_decoder=False,
                use_cache=False,
            )
        ),
        tokenizer=_tokenizer(folder),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=16,
            cross_attention_dim=16,
            in_channels=4,
            out_channels=8,
        ),
        scheduler=DPMSolverMultistepScheduler(num_train_timesteps=100, steps_offset=1),
    ).save_pretrained(folder)
    return folder


def _safety_checker() -> StableDiffusionSafetyChecker:
    config = CLIPConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 112,
        },
        projection_dim=16,
    )
    checker = StableDiffusionSafetyChecker(config)
    # Cosines are above -1: everything is above its threshold.
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)
    return checker


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def _unet(**more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=2,
        **more,
    )


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level tokenizer without merges: one token a letter."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    source = folder / "tokenizer-source"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(
        json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8"
    )
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(source, model_max_length=LENGTH, pad_token="<|endoftext|>")
