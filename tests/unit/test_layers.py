"""The import contracts of pyproject.toml, checked on the source text, with or without import-linter
installed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "mixport"
CONTRACTS: list[dict[str, Any]] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))[
    "tool"
]["importlinter"]["contracts"]
LAYERS = {
    contract["containers"][0]: contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"
}
"""Layers of each package that has some, the highest first."""
FENCES = [contract for contract in CONTRACTS if contract["type"] == "forbidden"]


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """Modules that a module imports anywhere but under TYPE_CHECKING: at its top, in functions, in `from
    package import module`.
    """
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(SOURCES[name].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            known = children & SOURCES.keys()
            found.update(known)
            if len(known) < len(node.names):
                found.add(str(node.module))
        pending += ast.iter_child_nodes(node)
    return found


def layer_of(name: str, container: str) -> int | None:
    """Height of a module within a package, 0 at the bottom; None for the package itself and for modules
    elsewhere.
    """
    inside = name.removeprefix(f"{container}.")
    if inside == name:
        return None
    child = inside.split(".")[0]
    heights = [
        index
        for index, line in enumerate(reversed(LAYERS[container]))
        if child in line.replace("|", ":").replace("(", "").replace(")", "").replace(" ", "").split(":")
    ]
    assert len(heights) == 1, (
        f"{container}.{child} stands in {len(heights)} layers of pyproject.toml, allowed 1"
    )
    return heights[0]


@pytest.mark.parametrize("container", LAYERS)
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_point_downwards(name: str, container: str) -> None:
    own = layer_of(name, container)
    for imported in imports_of(name):
        other = layer_of(imported, container)
        if own is None or other is None:
            continue
        assert other <= own, f"{name} imports {imported}, which stands above it"
        line, depth = [*reversed(LAYERS[container])][own], container.count(".") + 1
        siblings = "|" in line and imported.split(".")[depth] != name.split(".")[depth] and other == own
        assert not siblings, f"{name} imports its sibling {imported}"


@pytest.mark.parametrize("fence", FENCES, ids=[fence["name"] for fence in FENCES])
def test_third_party_packages_stay_behind_their_fences(fence: dict[str, Any]) -> None:
    allowed = [rule.split(" -> ") for rule in fence["ignore_imports"]]
    for name in SOURCES:
        for package in {imported.split(".")[0] for imported in imports_of(name)} & set(
            fence["forbidden_modules"]
        ):
            names = [source for source, imported in allowed if imported == package]
            within = any(
                fnmatchcase(name, source) or (source.endswith(".**") and f"{name}.".startswith(source[:-2]))
                for source in names
            )
            assert within, f"{name} imports {package}: {fence['name']}"


def test_the_contracts_cover_something() -> None:
    assert len(SOURCES) > 20
    assert {module for fence in FENCES for module in fence["forbidden_modules"]} >= {
        "torch",
        "timm",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "typer",
        "rich",
    }


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_only_the_console_writes(name: str) -> None:
    # The training package is scripts of its own, run with python -m: no command of mixport imports it.
    if name == "mixport.cli.console" or name.startswith("training."):
        return
    calls = [
        node
        for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


@pytest.mark.parametrize("module", ["mixport", "mixport.pipeline", "mixport.cli.program"])
def test_the_command_line_starts_without_heavy_packages(module: str) -> None:
    heavy = (
        "{'torch', 'timm', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'matplotlib', 'PIL', 'diffusers', "
        "'transformers', 'safetensors'}"
    )
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.strip() == "[]"
