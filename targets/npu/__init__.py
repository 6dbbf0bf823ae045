"""NPU-like machines: their description, their commands, their simulators."""
