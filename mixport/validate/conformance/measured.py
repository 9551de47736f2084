"""What the conformance kit measured: one result a runtime and version, checked in, and what follows for the
forms that lowering may use.

`mixport conformance` writes these files; nothing here is a list written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from mixport.records.errors import BadInputError
from mixport.records.runtime import RuntimeInfo
from mixport.records.targets import SessionRules

SCHEMA_VERSION = 1

SHIPPED = ("native", "x64-avx2", "wasm", "arm64")
"""Runtimes whose results are part of mixport, each of one version or more: a form is portable where all of
them agree with the arithmetic.
"""

_MAX_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class FormDifference:
    """First value of a form that differs.

    Attributes:
        case: graph, and which of its inputs, e.g. `odd-zero-points: near-tie`.
        index: position in the output.
        expected: by mixport's arithmetic.
        got: by the runtime.
    """

    case: str
    index: tuple[int, ...]
    expected: float | None
    got: float | None


@dataclass(frozen=True, kw_only=True)
class FormResult:
    """One form on one runtime.

    Attributes:
        cases: graphs run.
        values: numbers compared.
        mismatches: numbers that differ from mixport's arithmetic.
        exact: none differs, and no graph was refused.
        outputs_sha256: of everything the runtime gave: equal hashes are equal answers, right or wrong.
        refused: graphs that the runtime did not load or run.
        message: the runtime's own words for the first of them.
        first: first difference.
    """

    cases: int
    values: int
    mismatches: int
    exact: bool
    outputs_sha256: str
    refused: int = 0
    message: str = ""
    first: FormDifference | None = None


@dataclass(frozen=True, kw_only=True)
class ConformanceResult:
    """One runtime's result, of one version.

    Attributes:
        schema_version: of this record.
        mixport: version whose kit was run.
        name: of the runtime, as in `--runtime NAME`, without a version.
        runtime: who computed, with version and processor.
        session: session policy.
        kit_sha256: of the graphs and inputs: results of another kit cannot be compared.
        forms: by form name, sorted.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    mixport: str
    name: str
    runtime: RuntimeInfo
    session: SessionRules
    kit_sha256: str
    forms: Mapping[str, FormResult]

    @property
    def exact_forms(self) -> frozenset[str]:
        """Forms without a difference here."""
        return frozenset(name for name, form in self.forms.items() if form.exact)

    @property
    def file_name(self) -> str:
        """Name of its file in a folder of results: evidence is of one version, and a new version's result
        leaves the older one.
        """
        text = f"{self.name}-{self.runtime.version}"
        return f"{''.join(c if c.isalnum() or c in '-_.' else '-' for c in text)}.json"

    def document(self) -> dict[str, object]:
        """Plain JSON values, in an order that depends on nothing but the content."""
        return _RESULT.dump_python(self, mode="json")


_RESULT = TypeAdapter(ConformanceResult)


def read_result(path: Path) -> ConformanceResult:
    """Read one result file.

    Raises:
        BadInputError: no such file, too large, or not a result.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInputError(
                f"conformance result {path} is larger than {_MAX_BYTES} bytes",
                hint="mixport conformance --out FILE.json",
            )
        return _RESULT.validate_json(path.read_bytes())
    except OSError as error:
        raise BadInputError(
            f"conformance result {path} cannot be read: {error}", hint="mixport conformance --out FILE.json"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise BadInputError(
            f"conformance result {path} is damaged at {where}: {first['msg']}",
            hint="mixport conformance --out FILE.json",
        ) from error


def write_result(path: Path, result: ConformanceResult) -> None:
    """Write one result file; the same result gives the same bytes. Raises OSError."""
    path.write_bytes(
        json.dumps(result.document(), indent=1, sort_keys=False, allow_nan=False).encode("ascii") + b"\n"
    )


def shipped_results() -> tuple[ConformanceResult, ...]:
    """The results that are part of mixport, in the order of SHIPPED, newest version first.

    Raises:
        BadInputError: one is damaged, or a runtime of SHIPPED has none.
    """
    return read_results(Path(str(resources.files("mixport"))) / "validate" / "conformance" / "results")


def read_results(folder: Path) -> tuple[ConformanceResult, ...]:
    """The results in a folder of those runtimes that are part of mixport, in the order of SHIPPED, newest
    version first.

    Raises:
        BadInputError: one is damaged, or a runtime of SHIPPED has none.
    """
    found = [one for one in map(read_result, sorted(folder.glob("*.json"))) if one.name in SHIPPED]
    for name in SHIPPED:
        if all(one.name != name for one in found):
            raise BadInputError(
                f"{folder} has no conformance result of {name}",
                hint=f"mixport conformance --runtime {name} --out {folder}",
            )
    newest_first = sorted(found, key=lambda one: _version_key(one.runtime.version), reverse=True)
    return tuple(sorted(newest_first, key=lambda one: SHIPPED.index(one.name)))


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def unmeasured(
    runtimes: Iterable[tuple[str, str]], results: Sequence[ConformanceResult] | None = None
) -> tuple[str, ...]:
    """Versions without a result among runtimes that were run, each in words with the versions that have one.

    What they compute was not measured form by form: that a portable file is exact there rests on the
    comparison of the file itself. Libraries of which no version was measured are left out, as the simulation
    is.

    Args:
        runtimes: library and version of each.
        results: of the runtimes that count; the shipped ones by default.
    """
    known: dict[str, list[str]] = {}
    for result in shipped_results() if results is None else results:
        known.setdefault(result.runtime.name, []).append(result.runtime.version)
    missing = [
        (library, version)
        for library, version in dict.fromkeys(runtimes)
        if library in known and version not in known[library]
    ]
    return tuple(
        f"{library} {version} (measured: {', '.join(sorted(set(known[library]), key=_version_key))})"
        for library, version in missing
    )


def exact_forms(results: Sequence[ConformanceResult]) -> frozenset[str]:
    """Forms that every one of these runtimes computes exactly as mixport's arithmetic says.

    A form that one result lacks is not among them.

    Raises:
        BadInputError: no results, or results of different kits.
    """
    if not results:
        raise BadInputError(
            "no conformance results", hint="mixport conformance --runtime native --out FILE.json"
        )
    kits = {result.kit_sha256 for result in results}
    if len(kits) > 1:
        names = ", ".join(f"{result.name} ({result.mixport})" for result in results)
        raise BadInputError(
            f"conformance results of different kits: {names}",
            hint="mixport conformance --runtime NAME --out FILE.json for each",
        )
    first, *others = (result.exact_forms for result in results)
    return first.intersection(*others)


@dataclass(frozen=True, kw_only=True)
class FormEvidence:
    """What is known of one form.

    Attributes:
        form: its name.
        exact: on every runtime.
        values: numbers compared, over all runtimes.
        differs: runtimes on which it is not exact, as `name version`, or `name version, version` where
            results have several.
        equal: runtimes on which it is, spelt alike; one name can be in both, with other versions.
    """

    form: str
    exact: bool
    values: int
    differs: tuple[str, ...]
    equal: tuple[str, ...]

    def sentence(self) -> str:
        """For a report."""
        if self.exact:
            return f"{self.form}: exact on {'; '.join(self.equal)}; {self.values} values"
        return f"{self.form}: differs on {'; '.join(self.differs)}"


def form_evidence(form: str, results: Sequence[ConformanceResult] | None = None) -> FormEvidence:
    """Evidence for one form.

    Args:
        form: its name.
        results: of the runtimes; the shipped ones by default.

    Raises:
        BadInputError: a form that a result does not know.
    """
    found = shipped_results() if results is None else tuple(results)
    for result in found:
        if form not in result.forms:
            raise BadInputError(
                f"no result for form {form} on {_spelt([result])[0]}", hint="mixport conformance --list"
            )
    return FormEvidence(
        form=form,
        exact=bool(found) and all(result.forms[form].exact for result in found),
        values=sum(result.forms[form].values for result in found),
        differs=_spelt(result for result in found if not result.forms[form].exact),
        equal=_spelt(result for result in found if result.forms[form].exact),
    )


def _spelt(results: Iterable[ConformanceResult]) -> tuple[str, ...]:
    """Each runtime once, with its versions."""
    versions: dict[str, list[str]] = {}
    for result in results:
        versions.setdefault(result.name, []).append(result.runtime.version)
    return tuple(f"{name} {', '.join(dict.fromkeys(found))}" for name, found in versions.items())
