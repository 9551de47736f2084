#!/usr/bin/env bash
# torch 2.14.1 (CPU, x64), safetensors 0.8.0, numpy 2.4.6.
#
# Momenta of a channels_last parameter that went through safetensors, which stores contiguous tensors only, come back contiguous. load_state_dict
# of the optimiser keeps their memory order. AdamW with fused=True then walks both by memory: the momentum of one weight moves another, without an
# error or a warning. AdamW without fused gives the right weights from the same state, and so does fused with momenta in the parameter's order.
#
# Output seen:
#   state as it was: largest difference to a run without interruption 0
#   state through safetensors, fused=False: 0
#   state through safetensors, fused=True: 0.154
#   state through safetensors, fused=True, momenta in the order of the weights: 0
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 safetensors==0.8.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = Path(sys.argv[1]) / "momenta.safetensors"
VALUES = torch.arange(16.0).view(1, 2, 2, 4)


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def trained(*, fused, through_file, mended=False):
    """Two steps of AdamW; between them the momenta go through a file, or not."""
    weight = torch.nn.Parameter(last(VALUES / 10))
    optimiser = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=fused)
    weight.grad = last(VALUES - 8)
    optimiser.step()
    if through_file:
        whole = optimiser.state_dict()
        save_file({key: value.contiguous() for key, value in whole["state"][0].items()}, FILE)
        read = load_file(FILE)
        if mended:
            read = {key: last(value) if value.dim() == 4 else value for key, value in read.items()}
        whole["state"][0] = read
        optimiser.load_state_dict(whole)
    weight.grad = last(VALUES - 8)
    optimiser.step()
    return weight.detach()


def differs(**how):
    reference = trained(fused=how["fused"], through_file=False)
    return float((trained(**how) - reference).abs().max())


found = {
    "state as it was: largest difference to a run without interruption": differs(fused=True, through_file=False),
    "state through safetensors, fused=False": differs(fused=False, through_file=True),
    "state through safetensors, fused=True": differs(fused=True, through_file=True),
    "state through safetensors, fused=True, momenta in the order of the weights": differs(
        fused=True, through_file=True, mended=True
    ),
}
for what, difference in found.items():
    print(f"{what}: {difference:.3g}")
first, plain, fused, mended = found.values()
sys.exit(0 if first == plain == mended == 0.0 and fused > 0.01 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
