"""The algorithms for policies with a memory: the same updates, on sequences."""
