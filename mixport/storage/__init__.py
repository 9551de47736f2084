"""Bytes on disk: written whole or not at all, sealed, verified; images and arrays of unknown origin."""
