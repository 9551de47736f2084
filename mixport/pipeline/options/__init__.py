"""The options of a build, from flags, TOML or Python, as one checked record."""
