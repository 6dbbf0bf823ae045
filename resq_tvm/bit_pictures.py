"""Pictures of the bits that pixels choose: the frame, what changed in it, and maps of layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.bitmaps import BitStatistics, FrameBits, LayerSites
from resq_tvm.errors import ConfigError
from resq_tvm.scheme import MAX_BITS
from resq_tvm.video.clip import Picture

STATISTICS = "bits.json"
LAYERS = 6  # maps beside the picture where no layers are named
PICTURES = 8

_COLUMNS = 4
_TILE = 3.0  # inches across
_CAPTION = 0.45  # inches above a tile


def choose_layers(layers: Sequence[LayerSites], pattern: str | None = None) -> list[LayerSites]:
    """Return the layers to draw.

    Parameters
    ----------
    layers : sequence of LayerSites
        In the network's order; only one of several that read the same values is drawn.
    pattern : str, optional
        Shell pattern over layer names; without it `LAYERS` of them, evenly spread.

    Raises
    ------
    ConfigError
        If the pattern matches no layer that chooses bits.
    """
    if pattern is not None:
        matching = [la for la in layers if fnmatchcase(la.layer, pattern)]
        if not matching:
            raise ConfigError(
                f"map layers {pattern!r} matches no layer that chooses bits; these do: "
                f"{', '.join(la.layer for la in layers)}"
            )
        return list({la.sites: la for la in reversed(matching)}.values())[::-1]
    distinct = list({la.sites: la for la in reversed(layers)}.values())[::-1]
    if len(distinct) <= LAYERS:
        return distinct
    places = np.linspace(0, len(distinct) - 1, LAYERS).round().astype(int)
    return [distinct[i] for i in places]


class BitPictures:
    """Writes a picture of the last residual frame before each keyframe, `PICTURES` at most.

    Parameters
    ----------
    folder : Path
        An existing folder; pictures are ``frame_000403.png``.
    layers : sequence of LayerSites
        The layers to draw. Layers whose maps are a single pixel are left out.
    """

    def __init__(self, folder: Path, layers: Sequence[LayerSites]) -> None:
        self.folder = folder
        self.layers = layers
        self.names: list[str] = []
        self._waiting: tuple[int, Picture, FrameBits] | None = None

    def see(self, number: int, picture: Picture, bits: FrameBits | None) -> None:
        """Take one frame: its number, uint8 RGB picture, and bits (None for a keyframe)."""
        if bits is None:
            self.flush()
        else:
            self._waiting = (number, picture, bits)

    def flush(self) -> None:
        """Draw the residual frame seen last."""
        if self._waiting is not None and len(self.names) < PICTURES:
            number, picture, bits = self._waiting
            self.names.append(f"frame_{number:06}.png")
            draw_bits(self.folder / self.names[-1], f"frame {number}", picture, bits, self.layers)
        self._waiting = None

    def finish(self, statistics: BitStatistics, more: dict[str, Any]) -> None:
        """Draw what is left and write ``bits.json``: ``more``, the statistics and file names."""
        self.flush()
        document = {**more, **statistics.to_dict(), "pictures": self.names}
        text = json.dumps(document, indent=2) + "\n"
        (self.folder / STATISTICS).write_text(text, "utf-8")


def draw_bits(
    path: Path, title: str, picture: Picture, bits: FrameBits, layers: Sequence[LayerSites]
) -> None:
    """Draw one residual frame: the picture, its changed pixels, and maps of layers.

    Parameters
    ----------
    path : Path
        A ``.png`` file.
    title : str
        Heads the page.
    picture : ndarray
        uint8 RGB (H, W, 3), in the network's size.
    bits : FrameBits
    layers : sequence of LayerSites
        A layer on a concatenation gives a map per piece.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # A number of bits has the same colour in every picture.
    palette = ListedColormap(colormaps["inferno"](np.linspace(0, 0.95, MAX_BITS + 1)))
    norm = BoundaryNorm(np.arange(MAX_BITS + 2) - 0.5, MAX_BITS + 1)
    tiles = _tiles(picture, bits, layers)
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = picture.shape[:2]
    tile_height = _TILE * height / width + _CAPTION
    figure = Figure(figsize=(_TILE * columns, tile_height * rows + 0.9), layout="constrained")
    for n, (caption, shown) in enumerate(tiles):
        axes = figure.add_subplot(rows, columns, n + 1)
        # Every map is stretched over the picture, whatever its resolution.
        axes.imshow(
            shown, cmap=palette, norm=norm, interpolation="nearest", extent=(0, width, height, 0)
        )
        axes.set_title(fill(caption, 40), fontsize=8)
        axes.set_axis_off()
    used = sorted({0, *(b for layer in layers for b in layer.pool)})
    figure.legend(
        handles=[Patch(color=palette(b), label=f"{b} bits") for b in used],
        loc="outside lower center",
        ncols=len(used),
        frameon=False,
    )
    figure.suptitle(title)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=110)


def _tiles(
    picture: Picture, bits: FrameBits, layers: Sequence[LayerSites]
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return captions with RGB pictures (H, W, 3) or maps of bits (h, w)."""
    tiles: list[tuple[str, NDArray[np.uint8]]] = [("input", picture)]
    faded = picture // 4 + 190
    for name, mask in bits.changed.items():
        shown = np.where(mask[:, :, None], picture, faded)
        tiles.append((f"{name}: {mask.mean():.0%} of pixels changed", shown))
    for layer in layers:
        for value, site in zip(layer.values, layer.sites, strict=True):
            plane = bits.maps[site]
            if plane.size > 1:
                piece = f" / {value}" if len(layer.values) > 1 else ""
                tiles.append((f"{layer.layer}{piece}: {plane.mean():.2f} bits", plane))
    return tiles
