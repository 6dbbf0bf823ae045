"""The partition of ``main`` into a keyframe and a residual program."""

from resq_tvm.passes.partition.transform import Partition

__all__ = ["Partition"]
