"""The executors of one file side by side: interpreter, instrumented runtime, deployed runtime, simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import mixport
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import LoweredGraph
from mixport.records.simulation import FloatEvaluation, SimulatedRun, Simulation
from mixport.records.targets import SessionRules
from mixport.records.validation_report import Localisation
from mixport.validate.interpreter.graph import Array
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.localise.localise import Evidence, localise
from mixport.validate.run.compare import Comparison, compare, join
from mixport.validate.run.cut_islands import cut_islands
from mixport.validate.run.float_operators import compare_floats
from mixport.validate.run.session import CodeRunner, open_session, static_batch

_UNFUSED = "basic"
"""Optimisation level at which every operator between DequantizeLinear and QuantizeLinear runs as it stands in
the file.
"""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch and what the interpreter gives for it.

    Attributes:
        images: float32 [N, C, H, W].
        expected: by tensor name.
        inputs: what the images are.
        offset: position of the first image.
    """

    images: NDArray[np.float32]
    expected: Mapping[str, Array]
    inputs: str
    offset: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One batch, compared.

    Attributes:
        native: the runtime's counts.
        simulated: the simulation's.
        floats: float islands against float operators, and the output at optimisation level basic.
        batch: the batch itself while it is kept.
        located: the first divergence's place.
    """

    native: Comparison
    simulated: Comparison
    floats: Comparison
    batch: Batch | None
    located: Localisation | None


class Executors:
    """Runs a batch everywhere and compares.

    Attributes:
        interpreter: of the file.
        fixed_batch: the file's batch size where it is fixed.
    """

    def __init__(self, lowered: LoweredGraph, policy: SessionRules, *, simulation: Simulation | None) -> None:
        """Open the sessions.

        Raises:
            InvariantError: `lowered` names a site that is no code tensor of the file.
        """
        self._path = lowered.model_path
        self.interpreter = Interpreter(lowered.model_path, watch=lowered.sites)
        self.fixed_batch = static_batch(lowered.model_path)
        tensors = self.interpreter.plan.tensors
        wrong = [name for name in lowered.sites if name not in tensors or tensors[name].kind != "codes"]
        if wrong:
            raise InvariantError(
                f"site {wrong[0]} is no code tensor of {lowered.model_path}, known: "
                f"{', '.join(self.interpreter.sites)}"
            )
        self._sites = tuple(dict.fromkeys((*lowered.sites, *self.interpreter.entry_sites)))
        self.output = self.interpreter.plan.graph.only_output
        self._order = (*lowered.sites, self.output)
        self._ports = {port.name for port in self.interpreter.plan.graph.inputs}
        self._instrumented = CodeRunner(lowered.model_path, self._sites, policy=policy)
        # Further outputs can keep the optimiser from merging nodes: the file as it ships is run as well.
        self._deployed = open_session(lowered.model_path, policy=policy)
        self._simulation = simulation
        plan = self.interpreter.plan
        self._cut = cut_islands(plan, sites=self._sites, outputs=(*self.interpreter.entry_sites, self.output))
        self._unfused = open_session(
            self._cut.model, policy=policy.model_copy(update={"optimization_level": _UNFUSED})
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Code tensors that the instrumented file gives: those of the lowering, and those directly behind
        float islands.
        """
        return self._sites

    @property
    def order(self) -> tuple[str, ...]:
        """Tensors compared, in graph order."""
        return self._order

    def compare(self, images: NDArray[np.float32], *, inputs: str, offset: int = 0) -> Compared:
        """Run one batch everywhere.

        Args:
            images: float32 [N, C, H, W], at most one batch.
            inputs: what the images are, for reports.
            offset: position of the first image.

        Returns:
            comparisons against the interpreter. Sites directly behind a float island are given to all
            executors, and not counted.
        """
        runtime = self._instrumented.run(images)
        given = {name: runtime[name] for name in self.interpreter.entry_sites}
        execution = self.interpreter.run(images, overrides=given)
        expected = self._expected(execution.codes, given, execution.output)
        native = compare(
            expected, runtime, order=self._order, executor="onnxruntime", inputs=inputs, offset=offset
        )
        deployed_output = self._deployed.run(
            [self.output], {self.interpreter.plan.graph.inputs[0].name: images}
        )[0]
        wanted = {self.output: expected.get(self.output, runtime[self.output])}
        deployed = compare(
            wanted,
            {self.output: deployed_output},
            order=[self.output],
            executor="onnxruntime, without code outputs",
            inputs=inputs,
            offset=offset,
        )
        located = None
        if native.first is not None:
            local = replace(native.first, index=_without_offset(native.first.index, offset))
            evidence = Evidence(
                feeds={self.interpreter.plan.graph.inputs[0].name: images},
                expected=expected,
                got=runtime,
                overrides=given,
            )
            located = replace(localise(self._path, local, evidence), index=native.first.index)
        native = join(native, deployed)
        batch = Batch(images=images, expected=expected, inputs=inputs, offset=offset)
        if self._simulation is None:
            return Compared(
                native=native, simulated=Comparison(), floats=Comparison(), batch=batch, located=located
            )
        run = self._simulation.simulate(images, overrides=given)
        simulated = run.codes
        common = {name: array for name, array in expected.items() if name in simulated}
        if not common:
            raise InvariantError(f"the simulation knows none of the sites {', '.join(self._sites[:5])}")
        other = compare(
            common, simulated, order=self._order, executor="simulation", inputs=inputs, offset=offset
        )
        floats = self._compare_floats(batch, run, runtime, execution.output)
        return Compared(native=native, simulated=other, floats=floats, batch=batch, located=located)

    def _compare_floats(
        self, batch: Batch, run: SimulatedRun, runtime: Mapping[str, Array], output: Array | None
    ) -> Comparison:
        """Float islands, as the session policy's optimiser runs them and unfused; of an exact output, the
        unfused result.
        """
        islands = (
            self.interpreter.entry_sites
            if output is not None
            else (*self.interpreter.entry_sites, self.output)
        )
        missing = [name for name in islands if name not in run.floats]
        if missing:
            raise InvariantError(f"the simulation evaluates no float operator in front of {missing[0]}")
        floats = {name: run.floats[name] for name in islands}
        fused = compare_floats(
            floats,
            runtime,
            names=islands,
            executor="onnxruntime, float island",
            inputs=batch.inputs,
            offset=batch.offset,
        )
        if output is not None:
            floats[self.output] = FloatEvaluation(values=output.astype(np.float64), error=0.0)
        codes = {**runtime, **batch.expected}
        feeds = {
            port: batch.images if name in self._ports else codes[name]
            for port, name in self._cut.inputs.items()
        }
        names = self._cut.outputs
        unfused = dict(zip(names, self._unfused.run(list(names), feeds), strict=True))
        executor = f"onnxruntime, optimisation level {_UNFUSED}"
        return join(
            fused,
            compare_floats(
                floats, unfused, names=names, executor=executor, inputs=batch.inputs, offset=batch.offset
            ),
        )

    def expected(self, images: NDArray[np.float32], given: Mapping[str, Array]) -> dict[str, Array]:
        """What the interpreter gives where these codes stand behind the float islands."""
        execution = self.interpreter.run(images, overrides=given)
        return self._expected(execution.codes, given, execution.output)

    def _expected(
        self, codes: Mapping[str, Array], given: Mapping[str, Array], output: Array | None
    ) -> dict[str, Array]:
        missing = [name for name in self._sites if name not in codes]
        if missing:
            raise InvariantError(f"the interpreter gave no codes for site {missing[0]}")
        expected = {name: array for name, array in codes.items() if name not in given}
        return expected if output is None else {**expected, self.output: output}


def _without_offset(index: tuple[int, ...], offset: int) -> tuple[int, ...]:
    return (index[0] - offset, *index[1:]) if index else index


def simulation_version() -> str:
    """Version string of the simulation: it is part of mixport."""
    return f"mixport {mixport.__version__}"
