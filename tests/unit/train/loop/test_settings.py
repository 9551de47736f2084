"""Defaults of the loop: what stands in the documents."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any, cast

import pytest

from mixport.train.loop.settings import LoopSettings


def test_nothing_is_averaged_or_sharpened_unless_asked_for() -> None:
    made = LoopSettings()
    assert (made.ema, made.sharpness, made.warmup_epochs, made.device) == (0.0, "none", 0.0, "cpu")


def test_settings_do_not_change_under_way() -> None:
    made: Any = cast("Any", LoopSettings())
    with pytest.raises(FrozenInstanceError):
        made.lr = 1.0
