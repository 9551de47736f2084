"""Runtimes that a model can be compared on: native, WASM, emulated, and boards elsewhere. docs/runtimes.md has the protocol."""

from mixport.runtimes.cache_folder import cache_folder
from mixport.runtimes.catalogue import FORMS, NAMES, RuntimeEntry, check_names, download_mb, install, open_runtimes, survey

__all__ = ["FORMS", "NAMES", "RuntimeEntry", "cache_folder", "check_names", "download_mb", "install", "open_runtimes", "survey"]
