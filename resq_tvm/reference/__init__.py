"""The reference executor: what every Relax function of this project means, in PyTorch."""
