"""Calibration images: where they come from, and their cache."""

from __future__ import annotations

from mixport.calibration.generate import calibrate
from mixport.calibration.recipe import CalibrationRecipe, parse_calibration
from mixport.calibration.sets import SetSummary, find_set, list_sets, select_for_pruning, verify_sets
from mixport.calibration.sheet import contact_sheet

__all__ = [
    "CalibrationRecipe",
    "SetSummary",
    "calibrate",
    "contact_sheet",
    "find_set",
    "list_sets",
    "parse_calibration",
    "select_for_pruning",
    "verify_sets",
]
