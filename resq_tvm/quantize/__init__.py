"""Post-training quantization: calibration, range search, the calibrated network on disk."""
