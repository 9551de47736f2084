"""The bundle: manifest, metrics, gates, hashes and report."""
