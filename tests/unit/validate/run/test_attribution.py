"""Which module a node of the optimised graph works for."""

from __future__ import annotations

from mixport.validate.run.attribution import merged, modules_of
from mixport.validate.run.fusion_audit import OptimisedNode

SITES = [
    "input.codes",
    "stem",
    "blocks.0.norm.layer_norm",
    "blocks.0.attn.qkv",
    "blocks.0.attn",
    "blocks.0.attn.matmul",
    "blocks.0.add",
]


def node(name: str, reads: str, gives: str, op: str = "Op") -> OptimisedNode:
    return OptimisedNode(
        op=op, name=name, inputs=tuple(reads.split()), outputs=tuple(gives.split()), data="codes"
    )


def modules(*nodes: OptimisedNode) -> list[str | None]:
    return [*modules_of(nodes, SITES)]


def test_fused_nodes_are_told_by_the_layer_in_their_name() -> None:
    assert modules(node("stem/Conv_token_15", "a w", "b"), node("blocks.0.norm/3.Mul", "b b", "c")) == [
        "stem",
        "blocks.0.norm",
    ]


def test_a_generated_name_with_a_slash_is_no_module() -> None:
    # the exporter calls a softmax node_softmax_1; its last node gives the codes of a site
    assert modules(node("node_softmax_1/4.Sub", "a", "b"), node("", "b s z", "blocks.0.attn")) == [
        "blocks.0.attn",
        "blocks.0.attn",
    ]


def test_moves_belong_to_what_reads_them() -> None:
    assert modules(
        node("stem/Conv", "x w", "y"),
        node("Transpose_token_3", "y", "t"),
        node("node_view_2", "t", "u"),
        node("blocks.0.add/Add", "u v", "o"),
    ) == ["stem", "blocks.0.add", "blocks.0.add", "blocks.0.add"]


def test_readers_of_two_modules_share_the_innermost_that_holds_both() -> None:
    found = modules(
        node("", "q", "t", op="Transpose"),
        node("blocks.0.attn.qkv/Gemm", "t", "a"),
        node("blocks.0.attn.matmul/MatMul", "t", "b"),
    )
    assert found[0] == "blocks.0.attn"


def test_readers_that_have_nothing_in_common_leave_it_to_what_is_read() -> None:
    found = modules(
        node("blocks.0.attn.qkv/Gemm", "x", "q"),
        node("", "q", "t", op="Cast"),
        node("stem/Conv", "t", "a"),
        node("blocks.0.add/Add", "t", "b"),
    )
    assert found[1] == "blocks.0.attn.qkv"


def test_the_last_dequantisation_belongs_to_what_it_reads() -> None:
    assert modules(node("stem/Conv", "x", "q"), node("", "q", "output", op="DequantizeLinear")) == [
        "stem",
        "stem",
    ]


def test_what_nothing_connects_has_no_module() -> None:
    assert modules(node("shape", "x", "s"), node("more", "s", "u")) == [None, None]


def test_repeated_blocks_share_a_path() -> None:
    assert merged("layers.0.blocks.11.mlp.fc1") == "layers.*.blocks.*.mlp.fc1"
    assert merged("conv2d.3x3") == "conv2d.3x3"
