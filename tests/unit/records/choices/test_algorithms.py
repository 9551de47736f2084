"""The table of algorithms: every name leads to a function, and nothing is imported before it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.algorithms.reconstruction import choose_by_reconstruction
from mixport.records.choices.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    NEAREST,
    Algorithm,
    find_algorithm,
)
from mixport.records.choices.reconstruction_preset import PRESETS
from mixport.records.errors import BadOptionError


def test_nearest_comes_first_and_every_preset_follows() -> None:
    assert list(ALGORITHMS) == ["nearest", *PRESETS]
    assert DEFAULT_ALGORITHM == "mixport" and DEFAULT_ALGORITHM in PRESETS


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_the_name_it_is_found_by_and_a_line_for_people(name: str) -> None:
    algorithm = find_algorithm(name)
    assert algorithm is ALGORITHMS[name] and algorithm.name == name
    assert algorithm.title.strip() == algorithm.title != "" and "\n" not in algorithm.title


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_told_as_it_stands_in_its_table(name: str) -> None:
    algorithm, preset = ALGORITHMS[name], PRESETS[name]
    assert algorithm.preset is preset
    assert algorithm.title == preset.title
    assert algorithm.load() is choose_by_reconstruction


def test_nearest_learns_nothing() -> None:
    nearest = ALGORITHMS[NEAREST]
    assert nearest.preset is None
    assert nearest.load() is choose_nearest


@pytest.mark.parametrize("name", ["", "Nearest", "nearest ", "brecq,qdrop"])
def test_another_name_is_refused_with_all_that_are_allowed(name: str) -> None:
    with pytest.raises(BadOptionError) as caught:
        find_algorithm(name)
    assert str(caught.value).startswith(f"--reconstruction is {name!r}, allowed nearest, ")
    assert all(allowed in str(caught.value) for allowed in ALGORITHMS)
    assert caught.value.hint == "mixport build --help"


def test_nobody_adds_to_the_table_by_accident() -> None:
    with pytest.raises(TypeError):
        ALGORITHMS["own"] = ALGORITHMS[NEAREST]


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("mixport.quantize.algorithms.nearest:no_such", AttributeError),
        ("mixport.no_such:run", ModuleNotFoundError),
    ],
)
def test_an_entry_that_leads_nowhere_fails_when_it_is_loaded(entry: str, error: type[Exception]) -> None:
    broken = Algorithm(name="broken", title="leads nowhere", entry=entry)
    with pytest.raises(error, match="no_such"):
        broken.load()


def test_the_table_is_read_without_torch_and_without_quantisation() -> None:
    """Help reads it, and must not wait for either."""
    code = (
        "import sys; from mixport.records.choices.algorithms import ALGORITHMS; "
        "print(len(ALGORITHMS), 'torch' in sys.modules, 'mixport.quantize' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(ALGORITHMS)), "False", "False"]
