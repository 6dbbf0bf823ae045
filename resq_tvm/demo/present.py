"""Show what the demo measured: an overlay video and a plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resq_tvm.demo.judge import Entry
from resq_tvm.demo.measure import Measured
from resq_tvm.files import atomic_file
from resq_tvm.processing.overlay import draw
from resq_tvm.video.writer import VideoWriter

_PANEL_HEIGHT = 270


def write_overlay(measured: Measured, best: Entry, path: Path) -> None:
    """Write the clip twice side by side: the float network's predictions and the best scheme's.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    scheme = best.name.removeprefix("frame ")
    task = measured.subject.processing.task
    with atomic_file(path) as staging, VideoWriter(staging, measured.subject.clip.fps) as video:
        for i, picture in enumerate(measured.pictures):
            zoom = max(1, round(_PANEL_HEIGHT / picture.shape[0]))
            large = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
            kind = ""
            if best.kind == "resq":
                kind = "residual" if i % measured.period else "keyframe"
            panels = [
                draw(large, measured.predictions[name][i], task, measured.input_size, caption)
                for name, caption in (("float", "float"), (scheme, f"{best.name} {kind}"))
            ]
            video.add(np.hstack(panels))


def write_plot(measured: Measured, best: Entry, path: Path) -> None:
    """Plot error against bit operations and time, and error along the clip.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    quantized = [entry for entry in measured.entries if entry.kind != "float"]
    marks = {"frame": "s", "resq": "o", "hold": "x"}
    for column, (label, attribute, factor) in enumerate(
        (("GBOPs per frame", "bops", 1e-9), ("ms per frame", "ms", 1.0))
    ):
        axes = figure.add_subplot(grid[0, column])
        for entry in quantized:
            x = getattr(entry, attribute) * factor
            size = 90 if entry is best else 40
            axes.scatter(x, entry.error, marker=marks[entry.kind], s=size, label=entry.name)
            axes.annotate(
                entry.name, (x, entry.error), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
        axes.set_xlabel(label)
        axes.set_ylabel(f"error against float ({measured.unit})")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 1.2 * max(getattr(entry, attribute) * factor for entry in quantized))
        axes.grid(alpha=0.3)
    axes = figure.add_subplot(grid[1, :])
    for entry in quantized:
        style = "--" if entry.kind == "hold" else "-"
        axes.plot(entry.errors, style, linewidth=1.2, label=entry.name)
    axes.axvspan(0, measured.subject.calibration_frames - 0.5, alpha=0.1, color="grey")
    axes.set_xlabel("frame (grey: calibration, not counted)")
    axes.set_ylabel(f"error against float ({measured.unit})")
    axes.set_yscale("symlog", linthresh=max(float(best.error), 1e-3))
    axes.legend(ncols=3, fontsize=8)
    axes.grid(alpha=0.3)
    figure.suptitle(f"{measured.subject.title}, T = {measured.period}; best: {best.name}")
    with atomic_file(path) as staging:
        FigureCanvasAgg(figure).print_figure(str(staging), dpi=110)
