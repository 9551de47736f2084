"""The report of a bundle: one page for people."""

from __future__ import annotations

from mixport.release.report.page import render
from mixport.release.report.script import recheck_script
from mixport.release.report.strip import StripImage, strip_images

__all__ = ["StripImage", "recheck_script", "render", "strip_images"]
