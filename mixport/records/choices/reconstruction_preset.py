"""What a reconstruction of rounding does, as data: presets with the names and numbers of their publications,
and our own default.

Learning rates of scales and steps are relative to the first value unless a stage says that they are absolute,
as published ones are. What no preset reproduces of its publication: weights have symmetric scales per output
channel where most releases use zero points; tensors at which branches meet keep 8-bit codes whose scales are
tied and not learned, so that additions are integer; values are dropped to float behind learned quantisers
only; squared errors are summed over channels, for tokens too, where the releases sum over axis 1; step sizes
have no gradient factor (Adam divides by it); a unit whose error would grow is left as it was; which layers
have 8 bits is the scheme's matter. Published numbers of steps stand in the titles: `--iters` says how many
there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # It computes with numpy, which help must not wait for.
    from mixport.arithmetic.scale_grid import ScaleGrid

Grain = Literal["layer", "block"]
"""Size of a unit: as fine as the graph allows, or a block."""
Method = Literal["sigmoid", "free"]
"""What is learned of the codes: up or down (AdaRound), or any code."""
Loss = Literal["mse", "aph"]
"""Error of a unit's output: all elements alike, or weighted by the average perturbation Hessian (arXiv
2504.02508).
"""
WIDEST_LEARNED = 7
"""8-bit weights and activations are rounded to nearest: their error is small, and the pair bound holds their
codes.
"""
_SCARCE_DROP, _SCARCE_PASSES = 0.75, 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass over all units: what is learned, how, and against which error.

    Attributes:
        name: what the stage learns, in one word; in records where a preset has several.
        share: of the steps a unit.
        activations: activation quantisers work; False quantises weights alone, in this unit and in those
            before it.
        least_squares: learning starts from codes of least squared error of what a layer gives
            (`reconstruction.least_squares`), not from the nearest ones.
        rounding_lr: Adam's: of rounding logits (sigmoid), or of weights in units of their scale (free), the
            latter falling to 0 on a cosine; 0 leaves weights, scales and biases as the stage before.
        scale_lr: of weight scales, falling to 0 on a cosine; 0 leaves them.
        step_lr: of activation steps, falling to 0 on a cosine; 0 leaves them.
        absolute: scale_lr and step_lr move the scales themselves; False moves them relative to their first
            value.
        bias_lr: of biases, in units of one activation step through the norm of the channel's weights,
            falling; 0 leaves them.
        input_drop: probability of the float value in the unit's input, element by element (QDrop).
        inner_drop: probability of the float value behind each learned quantiser inside (QDrop).
        scarce: values that an output channel is learned from, for each weight that it sums, below which
            `input_drop` is at least 0.75 and `passes` 4: so few fit the noise of what quantised units before
            them give. None leaves both.
        passes: over the images, at most; fewer steps are taken where there would be more. None takes all
            steps.
        loss: weights of the output's elements.
        random_signs: `aph` moves elements up and down at random; False moves all alike, which LayerNorms do
            not see.
        power: of the output's error; `aph` has 2.
        loss_start: the output's error is multiplied so that its first value is this; None leaves it.
        logits_weight: of the Kullback-Leibler divergence between the float model's outputs and those behind
            the unit (PD-Quant). Above 0 every step runs the float rest of the model forwards and backwards:
            the first units cost as much as the model.
        temperature: of the softmax in that divergence, and in that of `aph`.
        rounding_weight: of the rounding regulariser (sigmoid).
        warmup: fraction of the steps without it.
        keeps_variance: a unit that ends in a layer is widened until its output varies as the float one does
            (`reconstruction.variance`), where it has activations narrower than 8 bits.
        damping: of free codes: weight of what keeps them from the brink between two codes, next to the
            relative squared error of the output, growing from 0 to this over the steps.
    """

    name: str = "all"
    share: float = 1.0
    activations: bool = True
    least_squares: bool = False
    rounding_lr: float = 0.0
    scale_lr: float = 0.0
    step_lr: float = 0.0
    absolute: bool = False
    bias_lr: float = 0.0
    input_drop: float = 0.0
    inner_drop: float = 0.0
    scarce: float | None = None
    passes: int | None = None
    loss: Loss = "mse"
    random_signs: bool = False
    power: float = 2.0
    loss_start: float | None = None
    logits_weight: float = 0.0
    temperature: float = 1.0
    rounding_weight: float = 0.01
    warmup: float = 0.2
    damping: float = 0.0
    keeps_variance: bool = False

    @property
    def asks_the_model(self) -> bool:
        """True where the error needs the float model behind the unit."""
        return self.loss == "aph" or self.logits_weight > 0

    def on(self, grid: ScaleGrid) -> Stage:
        """The stage for a target with this grid of scales: what would leave it is not learned."""
        if grid.moves_freely:
            return self
        return replace(
            self, scale_lr=0.0, step_lr=0.0 if grid.power_of_two else self.step_lr, keeps_variance=False
        )

    def for_unit(self, values: float) -> Stage:
        """The stage for a unit with so many values for each weight."""
        if self.scarce is None or values >= self.scarce:
            return self
        return replace(self, input_drop=max(self.input_drop, _SCARCE_DROP), passes=_SCARCE_PASSES)

    def within_passes(self, steps: int, *, images: int, batch: int) -> int:
        """Steps of `batch` images each, as many as `passes` allows, at least 1."""
        return steps if self.passes is None else max(1, min(steps, self.passes * images // batch))

    def steps(self, iters: int) -> int:
        """Steps a unit, of `iters` in all, at least 1."""
        return max(1, round(self.share * iters))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Parts and hyperparameters of one reconstruction.

    Attributes:
        name: on the command line.
        title: one line for people.
        differs: what of the publication is not reproduced, besides what holds for all presets.
        stages: passes over all units, one after another.
        grain: size of a unit.
        merge: part of the mergeable neighbours that become one unit (`reconstruction.merging`); 0 merges
            none.
        rounding: what is learned of the codes.
        mirrored: images are learned from as they are and mirrored left to right.
        batch: images a step.
        mlp_reconstruction: before anything is quantised, MLPs learn to do with ReLU in the place of GELU
            (`quantize.mlps`).
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    differs: str = ""
    grain: Grain = "block"
    merge: float = 0.0
    rounding: Method = "sigmoid"
    mirrored: bool = False
    batch: int = 32
    mlp_reconstruction: bool = False


DEFAULT = "mixport"

_OURS = Stage(
    least_squares=True,
    rounding_lr=1e-2,
    scale_lr=2e-3,
    step_lr=2e-3,
    bias_lr=5e-3,
    input_drop=0.25,
    inner_drop=0.25,
    scarce=125.0,
    damping=0.2,
    keeps_variance=True,
)
_QDROP = Stage(rounding_lr=1e-3, step_lr=4e-5, absolute=True, input_drop=0.5, inner_drop=0.5)

PRESETS = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name=DEFAULT,
                title=(
                    "codes, scales, activation steps and biases learned together; our measurements favour it"
                ),
                stages=(_OURS,),
                rounding="free",
                mirrored=True,
            ),
            Preset(
                name="adaround",
                title="AdaRound (arXiv 2004.10568): rounding layer by layer; published with 20,000 steps",
                differs="A unit is as small as the graph allows: layers of a residual branch are learned "
                "together, "
                "and a Relu behind them belongs to the unit.",
                stages=(Stage(name="weights", activations=False, rounding_lr=1e-3),),
                grain="layer",
            ),
            Preset(
                name="brecq",
                title=(
                    "BRECQ (arXiv 2102.05426): weights block by block, then activation steps; published "
                    "with 20,000 and 5,000 steps"
                ),
                differs="Plain error as in the release, no Fisher weights; the stem is learned like any "
                "block; the rate of steps is the "
                "release's 4e-4, the paper says 4e-5; the second pass has a quarter of the steps of "
                "the first.",
                stages=(
                    Stage(name="weights", activations=False, rounding_lr=1e-3),
                    Stage(name="steps", share=0.25, step_lr=4e-4, absolute=True, power=2.4),
                ),
            ),
            Preset(
                name="qdrop",
                title=(
                    "QDrop (arXiv 2203.05740): rounding and activation steps, half of the values float; "
                    "published with 20,000 steps"
                ),
                differs="The step of a unit's input is learned with the unit that reads it, not with the one "
                "that gives it; "
                "the rounding weight is that of ResNets, 0.01 (MobileNetV2 0.1, MnasNet 0.2).",
                stages=(_QDROP,),
            ),
            Preset(
                name="genie-m",
                title=(
                    "GENIE-M (arXiv 2212.04780): QDrop with weight scales learned beside the rounding; "
                    "published with 20,000 steps"
                ),
                differs=(
                    "Batch normalisation is folded before; activations may have a zero point; our "
                    "images, not GENIE-D's."
                ),
                stages=(replace(_QDROP, scale_lr=1e-4, rounding_weight=1.0),),
            ),
            Preset(
                name="pd-quant",
                title=(
                    "PD-Quant (arXiv 2212.07048): QDrop with the divergence of the model's outputs; "
                    "slow; published with 20,000 steps"
                ),
                differs="No distribution correction: float inputs are not adjusted to batch normalisation's "
                "statistics, which are folded; "
                "the temperature is that of ResNets, 4 (MobileNetV2 and MnasNet 1).",
                stages=(replace(_QDROP, rounding_lr=3e-3, logits_weight=10.0, temperature=4.0),),
            ),
            Preset(
                name="mrecg",
                title=(
                    "MRECG (arXiv 2303.11906): QDrop on units merged where capacity jumps; published "
                    "with 20,000 steps"
                ),
                differs=(
                    "Which units are alike, what capacity is and how many are merged are our own "
                    "definitions, see `merging`."
                ),
                stages=(_QDROP,),
                merge=0.5,
            ),
            Preset(
                name="aphq",
                title=(
                    "APHQ-ViT (arXiv 2504.02508): QDrop with errors weighted by what they do to the "
                    "outputs; published with 20,000 steps"
                ),
                differs="The perturbation is a thousandth of the output's size with random "
                "signs, not 1e-6 everywhere, which float32 loses and LayerNorms take away.",
                stages=(replace(_QDROP, loss="aph", random_signs=True, loss_start=2.0, temperature=20.0),),
                mlp_reconstruction=True,
            ),
        )
    }
)


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """How rounding is learned.

    Attributes:
        preset: the recipe.
        iters: steps a unit, at least 1.
        seed: of batches and masks.
        device: cpu or cuda.
        threads: of the CPU; what is learned depends on their number in the last places. None where nobody
            asked.
    """

    preset: Preset
    iters: int
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
