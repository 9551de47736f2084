"""How the loop trains: optimiser, rates, batch, averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimiserName = Literal["sgd", "adam"]
SharpnessName = Literal["none", "sam", "asam"]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings that every method shares.

    Attributes:
        optimiser: SGD with Nesterov momentum 0.9, or AdamW.
        lr: peak learning rate of the weights; falls to a thousandth by half a cosine in each phase.
        weight_decay: of weights alone.
        warmup_epochs: of each phase, half of it at most, from a tenth of the rate.
        ema: decay of the average of the parameters that is kept beside them, 0 for none.
        sharpness: sharpness-aware minimisation, which doubles the cost.
        rho: radius of its neighbourhood.
        seed: of everything random.
        device: cpu or cuda.
        amp: float models pass in bfloat16 (torch.autocast); their parameters, and quantised networks, stay
            float32.
    """

    optimiser: OptimiserName = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    ema: float = 0.0
    sharpness: SharpnessName = "none"
    rho: float = 0.05
    seed: int = 0
    device: str = "cpu"
    amp: bool = False
