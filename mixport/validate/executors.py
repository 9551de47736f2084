"""The executors of one file side by side: interpreter, instrumented runtime, deployed runtime, simulation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

import mixport
from mixport.artifacts import LoweredGraph, Simulation
from mixport.errors import InvariantError
from mixport.targets import SessionRules
from mixport.validate.compare import Comparison, compare, join
from mixport.validate.graph import Array
from mixport.validate.interpreter import Interpreter
from mixport.validate.session import CodeRunner, open_session, static_batch

OUTPUT = "output"


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
        self.interpreter = Interpreter(lowered.model_path, watch=lowered.sites)
        self.fixed_batch = static_batch(lowered.model_path)
        tensors = self.interpreter.plan.tensors
        wrong = [name for name in lowered.sites if name not in tensors or tensors[name].kind != "codes"]
        if wrong:
            raise InvariantError(f"site {wrong[0]} is no code tensor of {lowered.model_path}, known: {', '.join(self.interpreter.sites)}")
        self._sites = tuple(dict.fromkeys((*lowered.sites, *self.interpreter.entry_sites)))
        self._order = (*lowered.sites, OUTPUT)
        self._instrumented = CodeRunner(lowered.model_path, self._sites, policy=policy)
        # Further outputs can keep the optimiser from merging nodes: the file as it ships is run as well.
        self._deployed = open_session(lowered.model_path, policy=policy)
        self._simulation = simulation

    def compare(self, images: NDArray[np.float32], *, inputs: str, offset: int = 0) -> tuple[Comparison, Comparison]:
        """Run one batch everywhere.

        Args:
            images: float32 [N, C, H, W], at most one batch.
            inputs: what the images are, for reports.
            offset: position of the first image.

        Returns:
            the runtime's comparison and the simulation's, both against the interpreter. Sites directly behind a float island are
            given to all of them, and not counted.
        """
        runtime = self._instrumented.run(images)
        given = {name: runtime[name] for name in self.interpreter.entry_sites}
        execution = self.interpreter.run(images, overrides=given)
        expected = self._expected(execution.codes, given, execution.output)
        native = compare(expected, runtime, order=self._order, executor="onnxruntime", inputs=inputs, offset=offset)
        deployed_output = self._deployed.run([OUTPUT], {self.interpreter.plan.graph.inputs[0].name: images})[0]
        wanted = {OUTPUT: expected.get(OUTPUT, runtime[OUTPUT])}
        deployed = compare(
            wanted, {OUTPUT: deployed_output}, order=[OUTPUT], executor="onnxruntime, without code outputs", inputs=inputs, offset=offset
        )
        native = join(native, deployed)
        if self._simulation is None:
            return native, Comparison()
        simulated = self._simulation.codes(images, overrides=given)
        common = {name: array for name, array in expected.items() if name in simulated}
        if not common:
            raise InvariantError(f"the simulation knows none of the sites {', '.join(self._sites[:5])}")
        return native, compare(common, simulated, order=self._order, executor="simulation", inputs=inputs, offset=offset)

    def _expected(self, codes: Mapping[str, Array], given: Mapping[str, Array], output: Array | None) -> dict[str, Array]:
        missing = [name for name in self._sites if name not in codes]
        if missing:
            raise InvariantError(f"the interpreter gave no codes for site {missing[0]}")
        expected = {name: array for name, array in codes.items() if name not in given}
        return expected if output is None else {**expected, OUTPUT: output}


def simulation_version() -> str:
    """Version string of the simulation: it is part of mixport."""
    return f"mixport {mixport.__version__}"
