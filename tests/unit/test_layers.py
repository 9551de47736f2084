"""The import contracts of pyproject.toml, checked on the source text, with or without import-linter
installed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from fnmatch import fnmatchcase
from functools import cache
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


@cache
def imports_of(name: str) -> frozenset[str]:
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
    return frozenset(found)


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
def test_imports_point_downwards(container: str) -> None:
    lines, depth = [*reversed(LAYERS[container])], container.count(".") + 1
    for name in SOURCES:
        own = layer_of(name, container)
        for imported in imports_of(name) if own is not None else ():
            other = layer_of(imported, container)
            if own is None or other is None:
                continue
            assert other <= own, f"{name} imports {imported}, which stands above it"
            apart = imported.split(".")[depth] != name.split(".")[depth]
            siblings = "|" in lines[own] and apart and other == own
            assert not siblings, f"{name} imports its sibling {imported}"


def test_folders_are_small() -> None:
    modules = Counter(path.parent for path in SOURCES.values() if path.name != "__init__.py")
    assert {str(folder): count for folder, count in modules.items() if count > 15} == {}
    entries = [path for path in PACKAGE.iterdir() if path.name[0] not in "_." and path.name != "py.typed"]
    assert all(path.is_dir() for path in entries), "modules belong into folders"
    assert len(entries) + 1 <= 14, "13 folders and __init__.py"


def test_unit_tests_mirror_the_package() -> None:
    tests = REPOSITORY / "tests" / "unit"
    others = {"training"}
    folders = {
        path.relative_to(tests) for path in tests.rglob("*") if path.is_dir() and path.name[0] not in "_."
    }
    unknown = {str(path) for path in folders if path.parts[0] not in others and not (PACKAGE / path).is_dir()}
    assert unknown == set()


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


def test_only_the_console_writes() -> None:
    for name in SOURCES.keys() - {"mixport.cli.console"}:
        tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        lines = [one.lineno for one in calls if isinstance(one.func, ast.Name) and one.func.id == "print"]
        assert lines == [], name


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
