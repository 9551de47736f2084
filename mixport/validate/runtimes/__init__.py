"""Runtimes that a model can be compared on: native, WASM, emulated, and boards elsewhere. docs/runtimes.md
has the protocol.
"""

from mixport.validate.runtimes.catalogue import (
    FORMS,
    RuntimeEntry,
    check_names,
    download_mb,
    install,
    open_runtimes,
    survey,
)
from mixport.validate.runtimes.fetching.cache_folder import cache_folder
from mixport.validate.runtimes.names import NAMES, ONNXRUNTIMES, split_name

__all__ = [
    "FORMS",
    "NAMES",
    "ONNXRUNTIMES",
    "RuntimeEntry",
    "cache_folder",
    "check_names",
    "download_mb",
    "install",
    "open_runtimes",
    "split_name",
    "survey",
]
