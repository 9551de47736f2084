"""Target files: what a runtime or a device accepts, as data. Nothing in mixport branches on a target's
name.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixport.arithmetic.dtypes import STORAGE_BITS, Storage
from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS
from mixport.arithmetic.opsets import FIRST_OPSET, IR_VERSION, LAST_OPSET, STORAGE_OPSET, WIDE_CODES_OPSET
from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.records.choices.scheme import AUTO_WIDTHS, Scheme
from mixport.records.errors import TargetError
from mixport.records.fingerprint import sha256_bytes

_MAX_BYTES = 1 << 20
_INT8_ALLOWED = "session.qdqisint8allowed"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Bits = Annotated[int, Field(ge=2, le=8)]
_WeightStorage = Literal["int2", "int4", "int8"]


class WeightRules(_Table):
    """How weights may be quantised and stored.

    Attributes:
        bits: widths of codes.
        granularity: a scale for each output channel, or one for the whole weight.
        storage: width -> ONNX type in the file.
    """

    bits: tuple[_Bits, ...] = Field(min_length=1)
    granularity: Literal["per-channel", "per-tensor"]
    storage: dict[int, _WeightStorage]

    @field_validator("storage")
    @classmethod
    def _holds_codes(cls, storage: dict[int, Storage]) -> dict[int, Storage]:
        for bits, kind in storage.items():
            if bits > STORAGE_BITS[kind]:
                raise ValueError(f"codes of {bits} bits do not fit {kind}")
        return storage


class ActivationRules(_Table):
    """How activations may be quantised.

    Attributes:
        bits: widths of codes that layers and products read.
        storage: ONNX type of codes of up to 8 bits.
        zero_point: any, or 0 in the storage type: the middle of int8, so that ranges are symmetric.
        stream_bits: of residual streams that feed a normalisation kept in float; the most are taken.
    """

    bits: tuple[_Bits, ...] = Field(min_length=1)
    storage: Literal["uint8", "int8"]
    zero_point: Literal["any", "zero"]
    stream_bits: tuple[Literal[8, 16], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _signed_zero(self) -> ActivationRules:
        if self.zero_point == "zero" and self.storage == "uint8":
            raise ValueError(
                "zero_point is 'zero', and uint8 codes with zero point 0 hold no negative values: storage "
                "must be 'int8'"
            )
        return self


class ScaleRules(_Table):
    """Form of scales and rounding of codes.

    Attributes:
        form: any positive float32, or powers of two, of activations and weights alike.
        rounding: of QuantizeLinear.
    """

    form: Literal["float32", "power-of-two"]
    rounding: Literal["half-even"]


class GraphRules(_Table):
    """Limits of the ONNX file.

    Attributes:
        opset: of the file; 13 is the first with a scale for each channel, 21 the first with 16-bit codes and
            INT4.
        opset_int2: of a file with INT2 weights; None where the target stores none.
        opset_max: the target reads up to this one.
        ir_version_max: the target reads up to this one; 7 came with opset 13, 10 with opset 21.
        shapes: any batch, or one image.
        moves: reshapes, slices, pads and other movement of 8-bit codes as they are, or each between a
            DequantizeLinear and a QuantizeLinear of one scale, as compilers that partition a graph take it.
    """

    opset: int = Field(ge=FIRST_OPSET, le=LAST_OPSET)
    opset_int2: int | None = Field(default=None, ge=STORAGE_OPSET["int2"], le=LAST_OPSET)
    opset_max: int = Field(ge=FIRST_OPSET)
    ir_version_max: int = Field(ge=IR_VERSION[FIRST_OPSET])
    shapes: Literal["dynamic-batch", "static"]
    moves: Literal["codes", "own-units"] = "codes"

    @model_validator(mode="after")
    def _reachable(self) -> GraphRules:
        for name in ("opset", "opset_int2"):
            if (getattr(self, name) or 0) > self.opset_max:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed up to opset_max {self.opset_max}")
        return self


INTEGER_OPERATORS = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "GlobalAveragePool",
    "AveragePool",
    "MaxPool",
    "Reshape",
    "Transpose",
    "Concat",
    "Gather",
    "Expand",
    "Pad",
    "SpaceToDepth",
    "Slice",
    "Split",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
)
"""ONNX operators that can run on codes."""


class OperatorRules(_Table):
    """ONNX operators that run on integers. A model that needs another one is refused: between a
    DequantizeLinear and a QuantizeLinear ONNX Runtime would run it on integers, whatever the file says.
    """

    integer: tuple[str, ...]

    @field_validator("integer")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in INTEGER_OPERATORS]
        if unknown:
            raise ValueError(f"unknown operator {unknown[0]!r}, allowed {', '.join(INTEGER_OPERATORS)}")
        if not {"Conv", "Gemm", "MatMul"} & set(names):
            raise ValueError("no operator that layers run on: Conv, Gemm or MatMul")
        return names


class FunctionRules(_Table):
    """Functions of one 8-bit code.

    Attributes:
        float: keys of mixport.arithmetic.float_functions.FLOAT_FUNCTIONS that the runtime computes faster as
            a float operator between DequantizeLinear and QuantizeLinear, fused or not, than it reads a table.
            They are written so only where every runtime is proved to give the table's codes.
    """

    float: tuple[str, ...] = ()

    @field_validator("float")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in FLOAT_FUNCTIONS]
        if unknown:
            raise ValueError(f"unknown function {unknown[0]!r}, allowed {', '.join(FLOAT_FUNCTIONS)}")
        return names


class AccumulatorRules(_Table):
    """What sums must keep within, beyond the int32 that every runtime has.

    Attributes:
        pair_limit: largest sum of two neighbouring products that every machine of the target holds, e.g.
            32767 where some add u8 x s8 products in saturating int16; the smallest is -pair_limit - 1. None:
            no bound.
    """

    pair_limit: int | None = Field(default=None, ge=128)


class ConvolutionRules(_Table):
    """What the integer convolutions of a target take.

    Attributes:
        channel_multiple: input channels that its kernels take at once, where those of fewer are slow; None:
            nothing is known.
        least_outputs: output channels from which that holds.
        depthwise_multiplier: False where depthwise kernels give one output a channel, and several are slow.
    """

    channel_multiple: int | None = Field(default=None, ge=2)
    least_outputs: int = Field(default=1, ge=1)
    depthwise_multiplier: bool = True


class ElementwiseRules(_Table):
    """How a target does arithmetic of two tensors.

    Attributes:
        broadcast_channels: channels from which a factor for each of them is multiplied at full speed, where
            fewer are slow; None: any.
    """

    broadcast_channels: int | None = Field(default=None, ge=1)


class SessionRules(_Table):
    """Session policy that the exactness claim names."""

    optimization_level: Literal["disabled", "basic", "extended", "all"]
    threads: int = Field(ge=1)
    config: dict[str, str] = Field(default_factory=dict)


class Target(_Table):
    """One target file, read and checked. `name` and `sha256` come from the file itself.

    `portable`: only forms that give the same codes on every runtime; else the runtime's own softmax and
    LayerNorm, in float.
    """

    schema_version: Literal[1]
    title: str
    runtime: Literal["onnxruntime"]
    sources: tuple[str, ...]
    weights: WeightRules
    activations: ActivationRules
    scale: ScaleRules
    graph: GraphRules
    operators: OperatorRules
    session: SessionRules
    portable: bool = True
    accumulator: AccumulatorRules = AccumulatorRules()
    functions: FunctionRules = FunctionRules()
    convolutions: ConvolutionRules = ConvolutionRules()
    elementwise: ElementwiseRules = ElementwiseRules()
    name: str = ""
    sha256: str = ""

    @model_validator(mode="after")
    def _int8_session(self) -> Target:
        """ONNX Runtime on x64 keeps int8 activations in float without this option (1.32)."""
        if self.activations.storage == "int8" and _INT8_ALLOWED not in self.session.config:
            self.session.config[_INT8_ALLOWED] = "1"
        return self

    @model_validator(mode="after")
    def _opset_has_all(self) -> Target:
        """What a field asks for is in the opset that the file is written with."""
        kinds = set(self.weights.storage.values())
        if "int2" in kinds and self.graph.opset_int2 is None:
            raise ValueError("weights.storage has int2, and graph.opset_int2 is missing")
        needs = {f"weights.storage {kind}": STORAGE_OPSET[kind] for kind in sorted(kinds - {"int2"})}
        if 16 in self.activations.stream_bits:
            needs["activations.stream_bits 16"] = WIDE_CODES_OPSET
        needs |= {f"functions.float {name}": FLOAT_FUNCTIONS[name].opset for name in self.functions.float}
        for what, opset in needs.items():
            if opset > self.graph.opset:
                raise ValueError(f"{what} needs opset {opset}, and graph.opset is {self.graph.opset}")
        return self

    @property
    def scale_grid(self) -> ScaleGrid:
        """Scales that are allowed: every writer of a scale asks it."""
        return ScaleGrid(
            power_of_two=self.scale.form == "power-of-two",
            per_tensor=self.weights.granularity == "per-tensor",
        )

    def not_portable(self) -> Target:
        """The same target with `portable = false` and no bound on neighbouring products; the hash tells the
        two apart.
        """
        if not self.portable:
            return self
        return self.model_copy(
            update={
                "portable": False,
                "accumulator": AccumulatorRules(),
                "sha256": sha256_bytes(f"{self.sha256} portable = false".encode()),
            }
        )

    def check_scheme(self, scheme: Scheme) -> None:
        """Raise TargetError where the target cannot hold the scheme."""
        inner = {scheme.weight_bits} if scheme.budget is None else set(self.budget_widths())
        wanted = {
            "weight bits": (inner | {scheme.edge_bits}, self.weights.bits),
            "activation bits": ({scheme.activation_bits, scheme.edge_bits}, self.activations.bits),
        }
        for what, (got, allowed) in wanted.items():
            for bits in sorted(got - set(allowed)):
                raise TargetError(
                    f"target {self.name}: {what} {bits} asked for, allowed {', '.join(map(str, allowed))}",
                    hint=f"mixport targets show {self.name}",
                )
            if what == "weight bits":
                missing = sorted(got - self.weights.storage.keys())
                if missing:
                    raise TargetError(
                        f"target {self.name}: no storage type for {missing[0]}-bit weights",
                        hint="add it to [weights] storage",
                    )

    def budget_widths(self) -> tuple[int, ...]:
        """Weight bits to choose from under a size budget, ascending: of those that take the same room in the
        file only the widest.

        Raises:
            TargetError: the target holds none of them.
        """
        widest = {
            STORAGE_BITS[self.weights.storage[bits]]: bits for bits in AUTO_WIDTHS if bits in self.held_widths
        }
        if not widest:
            raise TargetError(
                f"target {self.name}: weight bits {', '.join(map(str, AUTO_WIDTHS))} to choose from "
                "under a size budget, "
                f"allowed {', '.join(map(str, self.weights.bits))}",
                hint=f"mixport targets show {self.name}",
            )
        return tuple(sorted(widest.values()))

    @property
    def held_widths(self) -> frozenset[int]:
        """Weight bits that are allowed and have a type in the file."""
        return frozenset(self.weights.bits) & self.weights.storage.keys()

    def weight_bytes(self, count: int, *, bits: int) -> int:
        """Bytes of `count` weights of a width in the file, packed as their storage type packs them."""
        return -(-count * STORAGE_BITS[self.weights.storage[bits]] // 8)

    def opset_for(self, storages: set[str]) -> int:
        """Opset of a file whose initialisers have these types (INT2 needs opset 25)."""
        return (self.graph.opset_int2 or self.graph.opset) if "int2" in storages else self.graph.opset


def shipped_targets() -> dict[str, Path]:
    """Target files shipped with mixport, by name."""
    packaged = Path(str(resources.files("mixport"))) / "_targets"
    folder = (
        packaged if packaged.is_dir() else Path(str(resources.files("mixport"))).resolve().parent / "targets"
    )
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_target(name_or_file: str) -> Target:
    """Read a target by name or by path of a .toml file.

    Raises:
        TargetError: unknown name, unreadable file, or a field that is missing, unknown or out of range.
    """
    shipped = shipped_targets()
    path = shipped.get(name_or_file)
    if path is None:
        path = Path(name_or_file)
        if not path.is_file():
            raise TargetError(
                f"unknown target {name_or_file!r}, known: {', '.join(shipped)}", hint="mixport targets list"
            )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TargetError(
                f"target file {path} is larger than {_MAX_BYTES} bytes", hint="mixport targets list"
            )
        raw = path.read_bytes()
        fields = tomllib.loads(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TargetError(
            f"target file {path} cannot be read: {error}", hint="mixport targets show ort-cpu"
        ) from error
    try:
        return Target.model_validate({**fields, "name": path.stem, "sha256": sha256_bytes(raw)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        # A rule over several fields names them; their whole table says no more.
        got = "" if isinstance(first.get("input"), dict) else f" (got {first.get('input')!r})"
        raise TargetError(
            f"target file {path}: {where}: {first['msg']}{got}",
            hint="mixport targets show ort-cpu",
        ) from error
