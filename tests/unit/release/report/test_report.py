from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mixport.records.errors import InvariantError
from mixport.release.choice_entries import UnitEntry
from mixport.release.manifest import Manifest, SiteEntry
from mixport.release.report import StripImage, recheck_script, render
from mixport.release.report.plots import size_figure, sqnr_figure, unit_figure
from mixport.release.validation_entries import SessionPolicy

VOID = {"meta", "br", "img", "path", "use", "rect"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self.text += " "
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def manifest(records: Any) -> Manifest:
    return records.manifest()


def exact(manifest: Manifest) -> Manifest:
    changes = {"verdict": "exact", "divergences": (), "float_islands": ()}
    return manifest.model_copy(
        update={"validation": manifest.validation.model_copy(update=changes), "gates": manifest.gates[1:2]}
    )


def test_the_page_is_well_formed_and_needs_nothing_from_outside(manifest: Manifest) -> None:
    text = render(manifest)
    page = Checker(text)
    assert not page.tags & {"script", "iframe", "link", "img", "object", "form"}
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    links = [value for name, value in page.attributes if name in ("href", "src") and value]
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert [value for name, value in page.attributes if name.startswith("on")] == []


def drawn(manifest: Manifest) -> Manifest:
    entry = manifest.calibration.model_dump() | {
        "method": "mixup",
        "generator": "builtin",
        "generator_details": {
            "source": "builtin",
            "pipeline": "StableDiffusionPipeline",
            "steps": 12,
            "guidance": 3.5,
            "size": (32, 48),
            "blackened": 2,
        },
        "prompts": {
            "strategy": "mixup",
            "classes": 10,
            "classes_per_prompt": 2,
            "template": "A <u>photo</u> of {classes}",
            "pairing": "balanced",
            "label_text": "name",
        },
        "filters": {
            "keep_energy": 0.5,
            "keep_statistics": 1.0,
            "drawn": 64,
            "dropped_by_energy": 32,
            "dropped_by_statistics": 0,
        },
    }
    return manifest.model_copy(update={"calibration": type(manifest.calibration).model_validate(entry)})


def test_drawn_calibration_images_show_with_all_that_made_them(manifest: Manifest) -> None:
    strip = [StripImage(uri="data:image/png;base64,AAAA", prompt="A photo of <s>a cat</s>")] * 2
    text = render(drawn(manifest), strip=strip)
    page = Checker(text)
    assert [value for name, value in page.attributes if name == "src"] == ["data:image/png;base64,AAAA"] * 2
    words = " ".join(page.text.split())
    for expected in (
        "32 images drawn by builtin from prompts (mixup).",
        "generator: pipeline StableDiffusionPipeline",
        "generator: guidance 3.5",
        "generator: size 32x48",
        "generator: blackened 2",
        "prompts: classes per prompt 2",
        "prompts: template A <u>photo</u> of {classes}",
        "filters: keep energy 0.5",
        "filters: dropped by energy 32",
        "A photo of <s>a cat</s>",
        "12" * 32,
    ):
        assert expected in words, expected
    assert "<u>" not in text
    assert "<s>" not in text
    assert "generator: revision" not in words, "what is not known is not shown"


@pytest.mark.parametrize(
    ("method", "words"), [("images", "32 real images."), ("noise", "32 images of noise.")]
)
def test_other_calibration_images_show_as_what_they_are(manifest: Manifest, method: str, words: str) -> None:
    calibration = manifest.calibration.model_copy(update={"method": method})
    text = " ".join(Checker(render(manifest.model_copy(update={"calibration": calibration}))).text.split())
    assert words in text
    assert "generator:" not in text


def test_everything_from_the_manifest_is_escaped(manifest: Manifest) -> None:
    text = render(manifest)
    for hostile in ("<b>bold</b>", "<i>one</i>", "<affine>", "norm <1>"):
        assert hostile not in text
        assert html.escape(hostile) in text


def test_the_same_manifest_gives_the_same_page(manifest: Manifest) -> None:
    assert render(manifest) == render(manifest)


def test_a_failure_shows_with_its_evidence(manifest: Manifest) -> None:
    text = Checker(render(manifest)).text
    words = " ".join(text.split())
    assert "codes differ" in words
    assert "2 gates not met" in words
    assert "size_ratio = 0.2 (limit <= 0.1)" in words
    assert "wasm 1.30.0 wasm 3 3,000 2" in words
    assert "wasm add [0, 1] 3 4 near-tie" in words
    assert "norm <1>" in words
    assert "behind an island" in words
    assert "near-tie 3 96 1" in words
    assert "session.x=1" in words


def test_a_success_shows_its_claim(manifest: Manifest) -> None:
    words = " ".join(Checker(render(exact(manifest))).text.split())
    assert "bit-exact" in words
    assert "not met" not in words
    assert "None: the claim covers every quantised tensor." in words
    for expected in (
        "91.00 %",
        "98.00 %",
        "20.0 dB",
        "fc linear weight W2 A4 int2 10\u00d74 scheme",
        "head linear weight W8 float int8",
        "conv.relu relu compute A4 uint8 0 … 15 0 0.05 31.5 read by fc",
        "largest: 1,000, holds: yes",
        "QLinearConv 1",
        "mixport build tests:small --gate 'size_ratio<=0.1'",
        "3.11",
        "quantize 1.2 s",
    ):
        assert expected in words, expected


def test_a_manifest_without_the_optional_parts_renders(manifest: Manifest) -> None:
    document = exact(manifest).document()
    for name in (
        "gates",
        "decisions",
        "preprocessing",
        "class_names",
        "graph",
        "timings_s",
        "convention",
        "edge_bits",
        "golden_images",
    ):
        del document[name]
    document["sites"] = []
    document["metrics"] = {name: None for name in document["metrics"]} | {
        "size_bytes": 1,
        "size_ratio": 0.5,
        "reasons": {},
    }
    document["validation"] |= {"proofs": {}, "site_checks": {}, "audit": {}, "runtimes": []}
    words = " ".join(Checker(render(Manifest.model_validate(document))).text.split())
    assert "No static bounds were computed." in words
    assert "runs on integers." not in words, "an empty audit shows nothing"


def test_warnings_stand_at_the_top_and_nowhere_without_any(manifest: Manifest) -> None:
    page = Checker(render(manifest))
    assert "1 warning" in page.text
    assert "far & <away>" in page.text
    assert page.ids.index("warnings") < page.ids.index("metrics")
    assert "warnings" not in Checker(render(manifest.model_copy(update={"warnings": ()}))).ids


def site(name: str, sqnr_db: float | None) -> SiteEntry:
    return SiteEntry(
        name=name,
        op="relu",
        kind="activation",
        weight_bits=None,
        activation_bits=8,
        weight_storage=None,
        reason="",
        sqnr_db=sqnr_db,
    )


def test_figures_take_the_pages_colours_and_mark_weak_sites() -> None:
    figure = sqnr_figure([site("a$b_{c}$ <x>", 30.0), site("weak", 3.0), site("unmeasured", None)])
    assert figure is not None
    assert figure.startswith("<svg role=")
    assert figure.count("fill: var(--accent)") == 1
    assert figure.count("fill: var(--warn)") == 1
    assert "a$b_{c}$ &lt;x&gt;" in figure
    assert "unmeasured" not in figure
    assert not re.search(r"#01020\d", figure)
    assert "currentColor" in size_figure(float_bytes=1000, size_bytes=100)


def test_no_figure_without_measurements_and_no_names_for_hundreds_of_sites() -> None:
    assert sqnr_figure([site("a", None)]) is None
    figure = sqnr_figure([site(f"site{index}", 20.0) for index in range(300)])
    assert figure is not None
    assert "site17" not in figure
    assert figure.count("var(--accent)") == 300


def small_bundle(folder: Path) -> None:
    """A quantise, requantise graph, its codes, and their golden values."""
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["/in/codes"]),
        helper.make_node("DequantizeLinear", ["/in/codes", "scale", "zero"], ["real"]),
        helper.make_node("GlobalAveragePool", ["real"], ["mean"]),
        helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["pool.codes"]),
        helper.make_node("DequantizeLinear", ["pool.codes", "scale", "zero"], ["output"]),
    ]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.05]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [128]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3, 1, 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    (folder / "golden").mkdir()
    images = np.random.default_rng(0).normal(0, 2, (2, 3, 4, 4)).astype(np.float32)
    codes = np.clip(np.rint(images / np.float32(0.05)) + 128, 0, 255).astype(np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": images})
    pooled = np.rint(np.asarray(output) / np.float32(0.05)).astype(np.int64) + 128
    np.savez(folder / "golden" / "inputs.npz", input=images)
    np.savez(folder / "golden" / "codes.npz", **{"/in/codes": codes, "pool.codes": pooled.astype(np.uint8)})


def test_the_script_on_the_page_works_as_it_stands(manifest: Manifest, tmp_path: Path) -> None:
    small_bundle(tmp_path)
    validation = manifest.validation.model_copy(
        update={"session_policy": SessionPolicy(optimization_level="all", threads=1, config={})}
    )
    page = render(manifest.model_copy(update={"validation": validation}))
    found = re.search(r'<pre id="script">(.*?)</pre>', page, re.DOTALL)
    assert found
    script = html.unescape(found[1])

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout) == (0, "2 tensors, 0 mismatches\n"), done.stderr
    codes = dict(np.load(tmp_path / "golden" / "codes.npz"))
    codes["/in/codes"][1, 2, 3, 3] ^= 1
    np.savez(tmp_path / "golden" / "codes.npz", **codes)
    done = run()
    assert (done.returncode, done.stdout) == (1, "2 tensors, 1 mismatches\n"), done.stderr


def test_the_script_states_the_session_policy() -> None:
    script = recheck_script(SessionPolicy(optimization_level="basic", threads=2, config={"a'b": 'c"d'}))
    assert "ORT_ENABLE_BASIC" in script
    assert "intra_op_num_threads = 2" in script
    assert "add_session_config_entry(\"a'b\", 'c\"d')" in script
    compile(script, "script", "exec")
    with pytest.raises(InvariantError, match="allowed disabled, basic, extended, all"):
        recheck_script(SessionPolicy(optimization_level="most", threads=1))


def with_proofs(manifest: Manifest, **proofs: Any) -> Manifest:
    return manifest.model_copy(
        update={"validation": manifest.validation.model_copy(update={"proofs": proofs})}
    )


def test_portability_of_every_node_and_broken_bounds_have_tables(manifest: Manifest) -> None:
    node = {
        "node": "conv <1>",
        "op": "Conv",
        "site": "conv.relu",
        "portability": "exact by proof",
        "why": "all 12 sums fit & requantise",
    }
    broken = {
        "node": "add_3",
        "site": "sum",
        "bound": "add ratio",
        "found": "1.5 times the output scale",
        "repair": "integer ratios",
    }
    text = render(with_proofs(manifest, nodes=[node], violations=[broken]))
    page = Checker(text)
    words = " ".join(page.text.split())
    assert "conv <1> Conv exact by proof all 12 sums fit & requantise" in words
    assert "add_3 add ratio 1.5 times the output scale integer ratios" in words
    assert "No static bounds" not in words
    plain = render(with_proofs(manifest))
    assert "No static bounds were computed." in plain and "How far each node" not in plain


def test_what_was_learned_shows_unit_by_unit(manifest: Manifest) -> None:
    text = render(manifest)
    words = " ".join(Checker(text).text.split())
    assert (
        "Learned unit by unit by mixport : 2,000 steps a unit on 32 images, seed 3, cpu, 2 CPU threads."
        in words
    )
    assert "body <b> fc 1 32 0.25 0.5 0.125" in words and "<b>" not in re.sub(r"<b>[^<>]*</b>", "", text)
    assert "late not learned 0 4 0.25 - -" in words
    assert "ReLU in the place of GELU: 8,000 steps each." in words
    assert "mlp <b> norm, fc1, fc2 0.25 0.0625" in words and "wild keeps GELU 0.75 -" in words
    assert "error of each unit before and after reconstruction" in text
    nearest = render(manifest.model_copy(update={"reconstruction": None}))
    assert "Every weight is rounded to its nearest code." in nearest
    assert "before and after reconstruction" not in nearest
    assert manifest.reconstruction is not None
    without = render(
        manifest.model_copy(
            update={"reconstruction": manifest.reconstruction.model_copy(update={"mlps": ()})}
        )
    )
    assert "in the place of GELU" not in without and "Learned unit by unit" in without


def unit(name: str, before: float | None, after: float | None) -> UnitEntry:
    return UnitEntry(name=name, layers=(), sites=(), error_before=before, error_after=after)


@pytest.mark.parametrize(
    ("errors", "ticks"),
    [
        ([(0.02, 0.01), (0.003, 0.001)], ["0.001", "0.01"]),
        ([(0.02, 0.012), (0.03, 0.015)], ["0.02", "0.03"]),
        ([(1e-5, 1e-7), (3.0, 2.0)], ["1e-07", "1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
    ],
)
def test_ticks_of_errors_are_plain_numbers(errors: list[tuple[float, float]], ticks: list[str]) -> None:
    figure = unit_figure([unit(f"u{place}", before, after) for place, (before, after) in enumerate(errors)])
    assert figure is not None and "$" not in figure
    assert [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", figure) if text[0].isdigit()] == ticks


def test_a_unit_has_a_bar_before_and_one_after() -> None:
    figure = unit_figure(
        [unit("a", 0.5, 0.1), unit("b", 0.25, 0.2), unit("broken", None, None), unit("dead", 0.0, 0.0)]
    )
    assert figure is not None
    assert figure.count("fill: var(--accent)") == 3, "two units, and the legend"
    assert "broken" not in figure and "dead" not in figure
    assert unit_figure([unit("broken", None, None)]) is None
    many = unit_figure([unit(f"unit{number}", 0.5, 0.1) for number in range(60)])
    assert many is not None and "unit17" not in many
