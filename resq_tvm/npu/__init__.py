"""Artifacts for NPUs at work: their files, the simulated machine, reports of simulated cycles."""
