from __future__ import annotations

import io
import re

import pytest

from mixport.cli.console import Console
from mixport.cli.node_table import show_nodes
from mixport.validate.inspect import NodeDescription

PROOF, MEASURED = "exact by proof", "exact on measured runtimes"
NODES = [
    NodeDescription(
        name="n0",
        op="GlobalAveragePool",
        output="features.stage_three.block_eleven.squeeze.pool",
        compute="integer",
        weight_bits=None,
        activation_bits=8,
        accumulator_bound=1_073_741_823,
        portability=MEASURED,
        why="integer sum; seen on native",
    ),
    NodeDescription(
        name="n1",
        op="Mul",
        output="t1",
        compute="float",
        weight_bits=None,
        activation_bits=None,
        portability=PROOF,
        why="IEEE; no integer operator, since input t0 is not dequantised codes",
    ),
    NodeDescription(
        name="n2",
        op="Add",
        output="t2",
        compute="float",
        weight_bits=4,
        activation_bits=8,
        portability=PROOF,
        why="IEEE; no integer operator, since input t1 is not dequantised codes",
    ),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stdout: io.StringIO) -> list[str]:
    show_nodes(Console(stdout=stdout), NODES)
    return re.sub(r"\x1b\[[0-9;]*m", "", stdout.getvalue()).splitlines()


def test_a_narrow_terminal_has_short_rows_and_each_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(Terminal())
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 80
    assert any(re.search(r"^t2 +Add +float +w4a8 +proof", line) for line in table)
    assert any(re.search(r"GlobalAveragePool +integer +a8 +1073741823 +measured", line) for line in table)
    # A long name goes on below itself, and no other column is cut.
    first = table[1 : next(place for place, line in enumerate(table) if line.startswith("t1 "))]
    assert "".join(re.split(r"\s{2,}", line)[0] for line in first).strip() == NODES[0].output
    reasons = lines[lines.index("") + 2 :]
    assert "  IEEE: t1, t2" in reasons
    assert "  no integer operator, since an input is not dequantised codes: t1, t2" in reasons
    assert len(reasons) == 4


def test_a_pipe_has_one_row_a_node() -> None:
    lines = shown(io.StringIO())
    assert len(lines) == 4
    assert lines[0].split()[:2] == ["output", "op"]
    assert re.search(
        (
            r"t2 +Add +float +4 +8 +exact by proof +IEEE; no integer operator, since input t1 is not "
            r"dequantised codes"
        ),
        lines[3],
    )
