"""The plot of a training: what stands in it, and that it is the same every time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mixport.records.choices.trained import EpochRecord, LayerChoice, SiteChoice, SitesFile
from mixport.release.training_plot import training_plot

CURVE = [
    EpochRecord(phase=phase, epoch=number, loss=1.0 / (number + 1), held_out=number / 4)
    for number, phase in enumerate(("noise", "noise", "fine-tune", "fine-tune"))
]
SITES = SitesFile(
    layers={"conv_1 $x^2$": LayerChoice(bits=3), "head": LayerChoice(bits=8)},
    sites={"relu <1>": SiteChoice(bits=4)},
    carriers={"add": SiteChoice(bits=8)},
)


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg.encode())
    return [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]


def points(svg: str) -> list[int]:
    """Points of each line that has several."""
    paths = [one.get("d", "") for one in ElementTree.fromstring(svg.encode()).iter()]
    return [len(re.findall("[ML]", path)) for path in paths]


def test_loss_and_accuracy_by_epoch() -> None:
    svg = training_plot(CURVE, None, labels=True)
    found = texts(svg)
    assert {"loss", "epoch", "held out: accuracy (%)", "fine-tune"} <= set(found)
    assert "noise" not in found, "only where a phase begins after another"
    assert points(svg).count(4) >= 2, "two lines of four points"
    assert "held out: agreement (%)" in texts(training_plot(CURVE, None, labels=False))


def test_bits_of_layers_and_sites_stand_below_under_their_names() -> None:
    found = texts(training_plot(CURVE, SITES, labels=True))
    assert {"weight bits", "activation bits", "conv_1 $x^2$", "head", "relu <1>"} <= set(found)
    assert "add" not in found, "carriers were not chosen"


@pytest.mark.parametrize("sites", [None, SITES, SitesFile()])
def test_the_same_training_has_the_same_bytes(sites: SitesFile | None) -> None:
    first = training_plot(CURVE, sites, labels=True)
    assert training_plot(CURVE, sites, labels=True) == first
    assert "<dc:date>" not in first


def test_one_epoch_is_a_plot_too() -> None:
    assert "loss" in texts(training_plot(CURVE[:1], None, labels=True))
