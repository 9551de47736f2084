"""Calibration images: where they come from, and their cache."""

from __future__ import annotations

from mixport.calibration.calibrate import cached_images, calibrate
from mixport.calibration.details import SetDetails, details_of, set_details, sheet_title
from mixport.calibration.preview import Preview, preview
from mixport.calibration.recipe import CalibrationRecipe, parse_calibration
from mixport.calibration.sets import (
    SetSummary,
    find_set,
    list_families,
    list_sets,
    prunable,
    remove,
    select_for_pruning,
    stage_results,
    verify_sets,
)
from mixport.calibration.sheet import contact_sheet
from mixport.calibration.variety import measure_variety, variety_warnings

__all__ = [
    "CalibrationRecipe",
    "Preview",
    "SetDetails",
    "SetSummary",
    "cached_images",
    "calibrate",
    "contact_sheet",
    "details_of",
    "find_set",
    "list_families",
    "list_sets",
    "measure_variety",
    "parse_calibration",
    "preview",
    "prunable",
    "remove",
    "select_for_pruning",
    "set_details",
    "sheet_title",
    "stage_results",
    "variety_warnings",
    "verify_sets",
]
