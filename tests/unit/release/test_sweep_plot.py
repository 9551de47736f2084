"""The plot of a sweep."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from mixport.release.sweep_plot import sweep_plot

Points = list[tuple[str, int, float | None]]

TWO: Points = [
    ("w8a8", 0, 91.0),
    ("w4a4", 0, 80.0),
    ("w4a4", 500, 85.0),
    ("w2a4", 0, 10.0),
    ("w2a4", 500, 60.0),
]


def texts(svg: str) -> list[str]:
    return [
        one.text or ""
        for one in ElementTree.fromstring(svg.encode()).iter("{http://www.w3.org/2000/svg}text")
    ]


def lines(svg: str) -> list[int]:
    """How many points the line of each number of steps has; a line of the legend has two."""
    groups = [
        one
        for one in ElementTree.fromstring(svg.encode()).iter("{http://www.w3.org/2000/svg}g")
        if re.fullmatch(r"line2d_\d+", one.get("id", ""))
    ]
    clipped = [path for one in groups for path in one if path.get("clip-path") and path.get("d")]
    return [len(re.findall("[ML]", path.get("d", ""))) for path in clipped]


def test_a_line_for_each_number_of_steps() -> None:
    svg = sweep_plot(TWO, top1=True)
    found = texts(svg)
    assert {"top-1 (%)", "rounded to nearest", "500 reconstruction steps"} <= set(found)
    assert [one for one in found if re.fullmatch(r"w\da\d", one)] == ["w8a8", "w4a4", "w2a4"]
    # w8a8 learns nothing and belongs to both.
    assert lines(svg) == [3, 3]


def test_what_was_not_measured_is_left_out() -> None:
    points: Points = [("w8a8", 0, 91.0), ("w4a4", 0, None), ("w2a4", 0, 50.0)]
    svg = sweep_plot(points, top1=False)
    assert "agreement with the float model (%)" in texts(svg)
    assert lines(svg) == [2]
    assert "w4a4" in texts(svg), "its place stays"


def test_nothing_measured_is_an_empty_plot() -> None:
    assert "w8a8" in texts(sweep_plot([("w8a8", 0, None)], top1=False))


def test_the_same_points_have_the_same_bytes() -> None:
    assert sweep_plot(TWO, top1=True) == sweep_plot(TWO, top1=True)
