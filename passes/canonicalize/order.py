"""How a source value's axes lie in memory while the layout changes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plain:
    """A value stored with its axes in the order ``axes`` of the source (empty: unchanged)."""

    axes: tuple[int, ...] = ()

    def where(self, axis: int, rank: int) -> int:
        """Return where the source's ``axis`` lies in memory."""
        return self.axes.index(axis % rank) if self.axes else axis % rank


@dataclass(frozen=True)
class Flat:
    """A channel-first image ``(1, c, h, w)`` flattened to ``(1, c*h*w)``, stored in NHWC order."""

    c: int
    h: int
    w: int

    @property
    def channel_last(self) -> tuple[int, int, int, int]:
        """The image's shape in memory."""
        return (1, self.h, self.w, self.c)


Order = Plain | Flat

AS_IS = Plain()
CHANNELS_FIRST = Plain((0, 2, 3, 1))
