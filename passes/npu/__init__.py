"""From fused kernels to the command stream of an NPU."""
