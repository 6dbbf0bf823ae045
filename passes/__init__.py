"""Relax and TIR passes, one per file."""
