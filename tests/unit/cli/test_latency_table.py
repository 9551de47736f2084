"""The README's table of latencies: ratios are bundle / other, and what was not timed is a dash."""

from __future__ import annotations

from tests.benchmarks.latency import table


def test_ratios_of_the_table() -> None:
    native = {"w8a8": 2.0, "w4a8": 3.0, "float": 8.0, "static": 4.0}
    timed = {
        "a": {"ms": {"native": native, "wasm": {"w8a8": 5.0, "w4a8": 6.0, "float": 20.0}}},
        "b": {"ms": {"native": native}},
    }
    assert [*table(["a", "b", "c"], ["w8a8", "w4a8"], timed, runtimes=["native", "wasm"])] == [
        "| model | float, ms | static / float | w8a8 / float | w8a8 / static | w4a8 / float | w4a8 / static "
        "| wasm: w8a8 / float | wasm: w4a8 / float |",
        "|---|---|---|---|---|---|---|---|---|",
        "| a | 8.00 | 0.50 | 0.25 | 0.50 | 0.38 | 0.75 | 0.25 | 0.30 |",
        "| b | 8.00 | 0.50 | 0.25 | 0.50 | 0.38 | 0.75 | - | - |",
        "| c | - | - | - | - | - | - | - | - |",
    ]
