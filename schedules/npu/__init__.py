"""Kernels for NPU-like targets: tiles in SRAM, transfers, tensorized products, vector programs."""
