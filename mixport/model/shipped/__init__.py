"""The architectures that mixport brings, and the names of the models that ship."""
