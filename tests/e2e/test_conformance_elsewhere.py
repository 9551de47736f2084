"""A part of the kit on the runtimes that are installed here, against the results that mixport ships. Some
seconds each.
"""

from __future__ import annotations

import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.machine import vector_features
from mixport.records.targets import load_target
from mixport.validate.conformance.catalogue import choose
from mixport.validate.conformance.kit import make_kit, run_kit
from mixport.validate.conformance.measured import ConformanceResult, shipped_results
from mixport.validate.runtimes import open_runtimes

#: One form of each family, and those that tell this runtime from the others.
PREFIXES = (
    "conv.grouped",
    "gemm.w8",
    "matmul.int16-output",
    "add.integer-ratio",
    "add.ties",
    "requantise.chain",
    "move.slice",
    "float.mul-add",
    "float.reciprocal",
    "float.exp",
    "double.",
    "cast.double",
    "softmax.portable",
    "layernorm.portable",
)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "shipped",
    [
        pytest.param(
            one,
            id=f"{one.name}@{one.runtime.version}",
            marks=() if one.name in {"native", "wasm"} else pytest.mark.sweep,
        )
        for one in shipped_results()
    ],
)
def test_a_runtime_gives_what_its_shipped_result_says(shipped: ConformanceResult) -> None:
    try:
        (runtime,) = open_runtimes([f"{shipped.name}@{shipped.runtime.version}"])
    except RuntimeUnavailableError as error:
        pytest.skip(f"{error}: {error.hint}")
    if shipped.name == "native" and not {"avx512_vnni", "avx_vnni"} & set(vector_features()):
        pytest.skip("the result is of a processor with VNNI")
    found = run_kit(make_kit(choose(PREFIXES)), runtime, policy=load_target("ort-cpu").session)
    assert {form: one.exact for form, one in found.forms.items()} == {
        form: shipped.forms[form].exact for form in found.forms
    }
    assert not found.forms["add.ties"].exact
