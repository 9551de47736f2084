"""The report of a bundle: one page for people."""

from __future__ import annotations

from mixport.report.page import render
from mixport.report.recheck import recheck_script
from mixport.report.strip import StripImage, strip_images

__all__ = ["StripImage", "recheck_script", "render", "strip_images"]
