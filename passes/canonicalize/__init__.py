"""Any float ``main`` → canonical ``main``: the passes, one per file, and their order."""

from resq_tvm.passes.canonicalize.pipeline import canonicalize

__all__ = ["canonicalize"]
