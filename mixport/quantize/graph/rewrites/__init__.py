"""Exact rewrites of the captured graph into the operators that quantisation knows, one idea a module."""
