"""Put the trained parts together: a Stable Diffusion pipeline folder that `DiffusionPipeline.from_pretrained`
loads.

python -m training.assemble --out WORK --into mixport/builtin
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from training.denoiser import SCHEDULE


def assemble(out: Path, into: Path) -> None:
    """Write `generator/` (weights in float16, half the size) and the classifiers' weights into `into`."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(out / "vae_textured"),
        text_encoder=CLIPTextModel.from_pretrained(out / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(out / "unet"),
        scheduler=DPMSolverMultistepScheduler(
            **SCHEDULE,
            algorithm_type="dpmsolver++",
            solver_order=2,
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = into / "generator"
    if folder.exists():
        shutil.rmtree(folder)
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(out / "tokenizer" / name, folder / "tokenizer" / name)
    # Where the parts were trained is of no interest to anyone.
    for config in folder.rglob("config.json"):
        described = json.loads(config.read_text(encoding="utf-8"))
        described.pop("_name_or_path", None)
        # AutoencoderTiny registers this one by itself, and warns where it finds it in its file.
        described.pop("block_out_channels" if described.get("_class_name") == "AutoencoderTiny" else "", None)
        if "dtype" in described:
            # transformers computes in the type that its file names, diffusers in float32: they must agree.
            described["dtype"] = "float32"
        config.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    for trained, shipped in (("resnet20", "cifar10-resnet20"), ("vit", "cifar10-vit")):
        if (out / f"{trained}.safetensors").is_file():
            shutil.copyfile(out / f"{trained}.safetensors", into / f"{shipped}.safetensors")
            (into / f"{shipped}.safetensors").chmod(0o644)
    size = sum(path.stat().st_size for path in into.rglob("*.safetensors"))
    print(f"{into}: {size / 1e6:.2f} MB of weights")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder with vae_textured, unet, text_encoder, tokenizer"
    )
    parser.add_argument("--into", type=Path, required=True, help="where the package looks for them")
    given = parser.parse_args()
    assemble(given.out, given.into)


if __name__ == "__main__":
    main()
