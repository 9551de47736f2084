"""Runtimes that a model can be compared on: native, WASM, emulated, and boards elsewhere. docs/runtimes.md has the protocol."""

from mixport.runtimes.cache_folder import cache_folder
from mixport.runtimes.catalogue import FORMS, RuntimeEntry, check_names, download_mb, install, open_runtimes, survey
from mixport.runtimes.names import NAMES, split_name

__all__ = [
    "FORMS",
    "NAMES",
    "RuntimeEntry",
    "cache_folder",
    "check_names",
    "download_mb",
    "install",
    "open_runtimes",
    "split_name",
    "survey",
]
