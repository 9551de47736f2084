"""What a model takes and gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixport.records.errors import InvariantError
from mixport.records.signature import classifier

SIGNATURE = classifier((1, 3, 24, 32), classes=7)


def test_a_classifier_takes_one_image_and_gives_logits() -> None:
    assert (SIGNATURE.image.name, SIGNATURE.image.shape) == ("input", (None, 3, 24, 32))
    assert (SIGNATURE.logits.name, SIGNATURE.logits.shape) == ("output", (None, 7))
    assert (SIGNATURE.task, SIGNATURE.classes) == ("classification", 7)


def test_what_knows_of_one_port_alone_says_so() -> None:
    two = replace(SIGNATURE, outputs=SIGNATURE.outputs * 2)
    with pytest.raises(
        InvariantError, match=r"has output \(logits\), output \(logits\), expected one logits"
    ):
        _ = two.logits
    with pytest.raises(InvariantError, match="has nothing, expected one image"):
        _ = replace(SIGNATURE, inputs=()).image
