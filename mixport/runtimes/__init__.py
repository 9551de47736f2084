"""Runtimes that a model can be compared on: native, WASM, emulated, and boards elsewhere."""
