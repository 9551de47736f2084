"""The report of a bundle: one page for people."""

from __future__ import annotations

from mixport.report.page import render
from mixport.report.recheck import recheck_script

__all__ = ["recheck_script", "render"]
