"""An emulated ARM board: programs run under qemu, and a model of the core tells their cycles."""
