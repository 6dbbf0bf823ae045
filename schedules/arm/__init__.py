"""Integer convolutions for 64-bit ARM: one file per scheme of multiplying, chosen per core."""
