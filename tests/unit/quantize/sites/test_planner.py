from __future__ import annotations

import torch
from torch import Tensor, nn

from mixport.quantize.sites.planner import QuantizationPlan, make_plan
from mixport.records.choices.scheme import DEFAULT_EDGE_CONVENTION, EDGE_CONVENTIONS, EdgeConvention, Scheme
from tests.unit.quantize.conftest import Capture


def plan_of(
    captured: Capture, module: nn.Module, scheme: str = "w4a4", convention: EdgeConvention = "qdrop"
) -> QuantizationPlan:
    return make_plan(captured(module).graph, Scheme.parse(scheme, edge_convention=convention), stream_bits=16)


def table(plan: QuantizationPlan) -> list[tuple[str, str, int]]:
    return [(site.name, site.role, site.bits) for site in plan.sites]


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.head(x.mean((2, 3)))


def test_a_chain_has_edges_at_eight_bits_and_the_rest_at_the_scheme(captured: Capture) -> None:
    plan = plan_of(captured, Chain())
    assert table(plan) == [
        ("input.codes", "input", 8),
        ("a", "compute", 4),
        ("b", "compute", 4),
        ("c", "carrier", 8),
        ("global_average_pool", "compute", 8),
    ]
    assert {node.name for node in plan.edges} == {"conv2d", "linear"}
    assert plan.groups == ()


def test_each_convention_says_what_the_edges_are(captured: Capture) -> None:
    brecq, vit = plan_of(captured, Chain(), convention="brecq"), plan_of(captured, Chain(), convention="vit")
    assert table(brecq)[:3] == [("input.codes", "input", 8), ("a", "compute", 8), ("b", "compute", 4)]
    assert table(brecq)[3:] == [("c", "carrier", 8), ("global_average_pool", "compute", 8)]
    assert {node.name for node in brecq.edges} == {"conv2d", "linear"}
    assert table(vit)[:3] == [("input.codes", "input", 8), ("a", "compute", 4), ("b", "compute", 4)]
    assert ("global_average_pool", "compute", 4) in table(vit) and vit.edges == frozenset()
    assert DEFAULT_EDGE_CONVENTION == "brecq" and set(EDGE_CONVENTIONS) == {"brecq", "qdrop", "vit"}


def test_what_the_first_layer_gives_is_read_at_edge_bits_through_its_relu(captured: Capture) -> None:
    names = [name for name, _, _ in table(plan_of(captured, Residual(), "w4a3", convention="brecq"))]
    assert names == ["input.codes", "stem", "branch", "add", "after"], (
        "the carrier serves, without a narrower copy"
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.after(torch.relu(x + self.branch(x))).flatten(1)


def test_a_residual_block_ties_its_scales_and_requantises_once(captured: Capture) -> None:
    plan = plan_of(captured, Residual(), "w4a3")
    assert table(plan) == [
        ("input.codes", "input", 8),
        ("stem", "carrier", 8),
        ("stem.a3", "compute", 3),
        ("branch", "carrier", 8),
        ("add", "carrier", 8),
        ("after", "carrier", 8),
    ]
    (group,) = plan.groups
    assert set(group.members) == {"stem", "branch", "add"}
    assert group.leaves == {"stem", "branch"}
    add = next(site for site in plan.sites if site.name == "add")
    assert add.bounds == (0.0, None)


def test_eight_bit_readers_share_the_carrier(captured: Capture) -> None:
    names = [name for name, _, _ in table(plan_of(captured, Residual(), "w4a8"))]
    assert names == ["input.codes", "stem", "branch", "add", "after"]


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.conv(torch.relu(x))).flatten(1)


def test_a_relu_that_shares_its_input_requantises_it(captured: Capture) -> None:
    plan = plan_of(captured, PreActivation(), "w4a4")
    by_name = {site.name: site for site in plan.sites}
    assert by_name["stem"].bounds is None
    relu = by_name["relu"]
    assert relu.bounds == (0.0, None)
    assert relu.source is not by_name["stem"].tensor.args[0]


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([torch.relu(self.a(x)), self.b(x)], 1)).flatten(1)


def test_concat_operands_share_scale_and_zero_point(captured: Capture) -> None:
    plan = plan_of(captured, Concat(), "w4a8")
    (group,) = plan.groups
    assert group.leaves == frozenset()
    assert group.equal_zero_point == (("a", "b"),)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + torch.nn.functional.gelu(self.fc(self.norm(x)))
        return self.head(self.norm(x)[:, 0])


def test_a_stream_into_a_norm_is_sixteen_bits_and_takes_tables_but_no_layer_codes(captured: Capture) -> None:
    plan = plan_of(captured, Normalised(), "w4a8")
    sites = table(plan)
    assert ("add", "carrier", 16) in sites
    assert ("gelu", "table", 8) in sites
    assert plan.decisions == ()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after((self.conv(x) + 3).clamp(0, 6).div(6)).flatten(1)


def test_a_chain_of_functions_is_one_table(captured: Capture) -> None:
    plan = plan_of(captured, Gated(), "w4a4")
    tables = [site for site in plan.sites if site.role == "table"]
    assert len(tables) == 1
    assert [str(node.target).split(".")[1] for node in tables[0].chain] == ["add", "clamp", "div"]


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x * x)
        return self.c(x + x).flatten(1)


def test_a_value_paired_with_itself_is_a_function_of_one_value(captured: Capture) -> None:
    sites = table(plan_of(captured, Square(), "w8a8"))
    assert [role for _, role, _ in sites].count("table") == 2
    assert ("pow", "table", 8) in sites
    assert ("mul", "table", 8) in sites


def test_site_names_are_unique(captured: Capture) -> None:
    names = [site.name for site in plan_of(captured, Normalised()).sites]
    assert len(names) == len(set(names))
