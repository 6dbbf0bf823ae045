"""Timelines of simulated programs: Chrome trace JSON, and a picture.

Frames are laid one after the other, in microseconds. The trace opens in Perfetto and in Chrome's
``about:tracing``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import OutputError
from resq_tvm.files import atomic_file
from resq_tvm.targets.npu.commands import Engine
from resq_tvm.targets.npu.timing_result import REASONS, Timing

Floats = NDArray[np.float64]

LANES: Final = ("frame", "kernel", "load", "store", "matrix", "vector", "host")
_WORK: Final = {Engine.LOAD: "bytes", Engine.STORE: "bytes", Engine.MATRIX: "products"}

_COLUMNS: Final = 2400  # of the picture's lanes
_CURVE: Final = 240  # points of the utilisation curve
_COLOURS: Final = 10
_LABELLED: Final = 0.02  # part of the picture's width from which on a kernel's name is written


def write_trace(path: str | os.PathLike[str], timings: Sequence[Timing]) -> None:
    """Write a Chrome trace: a row per engine, one for the host, kernels and frames above.

    Parameters
    ----------
    path : path-like
        JSON.
    timings : sequence of Timing
        Frames, laid one after the other.

    Raises
    ------
    OutputError
        If the file cannot be written.

    Notes
    -----
    ``args`` of a command tell its number in the program, its cycles, the bytes or products (or that
    it was skipped), for how long the engine stood still before it and why, and for how long it left
    the bus to the other DMA engine. A kernel's span lasts from the end of all before it to its own;
    kernels overlap on the engines.
    """
    npu = timings[0].npu if timings else "NPU"
    document = {
        "displayTimeUnit": "ns",
        "otherData": {"simulated": True, "npu": npu},
        "traceEvents": [*_names(npu), *_events(timings)],
    }
    with atomic_file(path) as staging:
        staging.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")


def _names(npu: str) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", 0, {"name": f"{npu} (simulated)"})
    for lane, name in enumerate(LANES):
        yield _metadata("thread_name", lane, {"name": name})
        yield _metadata("thread_sort_index", lane, {"sort_index": lane})


def _metadata(name: str, lane: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": lane, "name": name, "args": args}


def _events(timings: Sequence[Timing]) -> Iterator[dict[str, Any]]:
    for timing, begin in zip(timings, _begins(timings), strict=True):
        scale = 1e6 / timing.clock_hz

        def span(
            lane: str, name: str, start: float, cycles: float, args: dict[str, Any],
            scale: float = scale, begin: float = begin,
        ) -> dict[str, Any]:  # fmt: skip
            return {
                "ph": "X", "pid": 0, "tid": LANES.index(lane), "name": name,
                "ts": round(begin + start * scale, 4), "dur": round(cycles * scale, 4),
                "args": args,
            }  # fmt: skip

        yield span("frame", timing.program, 0, timing.cycles, {"cycles": timing.cycles})
        kernels = {kernel.kernel: kernel for kernel in timing.kernels}
        for turn in timing.turns:
            kernel = kernels[turn.kernel]
            args = {"cycles": turn.end - turn.begin, "bound_by": kernel.bound_by}
            yield span("kernel", kernel.name, turn.begin, turn.end - turn.begin, args)
        for call in timing.host:
            yield span("host", call.function, call.start, call.cycles, {"cycles": call.cycles})
        c = timing.commands
        columns = (
            c.engine, c.kernel, c.start, c.free, c.stall, c.reason, c.contention, c.work, c.skipped,
        )  # fmt: skip
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for number, row in enumerate(rows):
            engine, kernel_id, start, free, stall, reason, lost, work, skipped = row
            args = {"command": number, "cycles": free - start}
            if skipped:
                args["skipped"] = True
            elif engine in _WORK:
                args[_WORK[Engine(engine)]] = work
            if stall:
                args |= {"stall": stall, "waited_for": REASONS[reason]}
            if lost:
                args["bus_contention"] = lost
            lane = Engine(engine).name.lower()
            yield span(lane, kernels[kernel_id].name, start, free - start, args)


def _begins(timings: Sequence[Timing]) -> Floats:
    """Return the microsecond at which every frame begins."""
    lengths = [timing.seconds * 1e6 for timing in timings]
    return np.concatenate([[0.0], np.cumsum(lengths)])[: len(timings)]


# --- picture ----------------------------------------------------------------------------------


def draw_timeline(path: str | os.PathLike[str], timings: Sequence[Timing]) -> None:
    """Draw the engines as lanes, a colour per kernel, and how much of the time they work.

    Parameters
    ----------
    path : path-like
        The picture; its format is that of the suffix, PNG without one.
    timings : sequence of Timing
        Frames of one machine, laid one after the other; at least one.

    Raises
    ------
    OutputError
        If the file cannot be written, or its suffix is of no format of pictures.

    Notes
    -----
    A column of a lane has the colour of the kernel that the engine works for in its middle, the
    paler the less of the column's time it works.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = Path(path).suffix[1:].lower() or "png"
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        raise OutputError(f"output {str(path)!r} is of no format of pictures; name it .png")

    begins = _begins(timings)
    total = float(begins[-1] + timings[-1].seconds * 1e6) or 1.0
    lanes = ["load", "store", "matrix", "vector"]
    if any(timing.host for timing in timings):
        lanes.append("host")

    figure = Figure(figsize=(16, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    names, work, curve = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, len(lanes), 3))
    _draw_kernels(names, timings, begins, total)
    work.imshow(
        np.stack([_lane_picture(timings, begins, total, lane) for lane in lanes]),
        extent=(0, total, len(lanes), 0),
        aspect="auto",
        interpolation="nearest",
    )
    work.set_yticks(np.arange(len(lanes)) + 0.5, lanes)
    edges = np.linspace(0, total, _CURVE + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    for lane in lanes[:4]:
        busy = _busy_share(timings, begins, edges, lane)
        curve.plot(middles, 100 * busy, label=lane, linewidth=1)
    curve.set(ylim=(0, 120), ylabel="busy, %", xlabel="simulated microseconds")
    curve.legend(loc="upper right", ncols=4, fontsize="small")
    for axes in (work, curve):
        for begin in begins[1:]:
            axes.axvline(begin, color="black", linewidth=0.8)
    names.set_title(_title(timings))
    with atomic_file(path) as staging:
        canvas.print_figure(staging, format=kind, dpi=110)


def _title(timings: Sequence[Timing]) -> str:
    shown = ", ".join(f"{t.program} {t.seconds * 1e3:.3f} ms" for t in timings)
    return f"simulated on {timings[0].npu}: {shown}"


def _colour(kernel: int) -> tuple[float, float, float]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["tab10"](kernel % _COLOURS)
    return float(red), float(green), float(blue)


def _draw_kernels(axes: Any, timings: Sequence[Timing], begins: Floats, total: float) -> None:
    """Draw a strip of kernels, with names where there is room."""
    for timing, begin in zip(timings, begins, strict=True):
        scale = 1e6 / timing.clock_hz
        names = {kernel.kernel: kernel.name for kernel in timing.kernels}
        for turn in timing.turns:
            left, width = begin + turn.begin * scale, (turn.end - turn.begin) * scale
            axes.barh(0, width, 1, left=left, color=_colour(turn.kernel), align="edge")
            if width >= _LABELLED * total:
                middle, name = left + width / 2, names[turn.kernel][-24:]
                axes.text(middle, 1.1, name, rotation=40, fontsize=7, ha="left")
    axes.set_ylim(0, 5)
    axes.set_yticks([0.5], ["kernel"])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _spans(timing: Timing, lane: str) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Return starts, ends, shares of work and kernels of what a lane does, in cycles."""
    if lane == "host":
        starts = np.array([call.start for call in timing.host], float)
        cycles = np.array([call.cycles for call in timing.host], float)
        return starts, starts + cycles, np.ones_like(starts), np.zeros(len(starts), np.int64)
    c = timing.commands
    own = c.engine == Engine[lane.upper()]
    starts, ends = c.start[own].astype(float), c.free[own].astype(float)
    lengths = np.maximum(ends - starts, 1)
    return starts, ends, 1 - c.contention[own] / lengths, c.kernel[own]


def _busy_until(timing: Timing, lane: str, times: Floats) -> Floats:
    """Return for how many cycles a lane has worked at given times."""
    starts, ends, share, _ = _spans(timing, lane)
    if not len(starts):
        return np.zeros_like(times)
    points = np.stack([starts, ends], axis=1).reshape(-1)
    done = np.cumsum((ends - starts) * share)
    values = np.stack([np.concatenate([[0.0], done[:-1]]), done], axis=1).reshape(-1)
    return np.interp(times, points, values, left=0.0)


def _busy_share(timings: Sequence[Timing], begins: Floats, edges: Floats, lane: str) -> Floats:
    """Return the part of the time between edges (µs) in which a lane works."""
    worked = np.zeros_like(edges)
    for timing, begin in zip(timings, begins, strict=True):
        scale = 1e6 / timing.clock_hz
        worked += _busy_until(timing, lane, (edges - begin) / scale) * scale
    return np.diff(worked) / np.diff(edges)


def _lane_picture(timings: Sequence[Timing], begins: Floats, total: float, lane: str) -> Floats:
    """Return a lane as a row of colours, (columns, 3)."""
    edges = np.linspace(0, total, _COLUMNS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    colours = np.ones((_COLUMNS, 3))
    for timing, begin in zip(timings, begins, strict=True):
        cycles = (middles - begin) * timing.clock_hz / 1e6
        inside = (cycles >= 0) & (cycles < timing.cycles)
        starts, _, _, kernels = _spans(timing, lane)
        if not len(starts) or not inside.any():
            continue
        latest = np.clip(np.searchsorted(starts, cycles[inside], "right") - 1, 0, None)
        palette = np.array([_colour(k) for k in range(_COLOURS)])
        colours[inside] = palette[kernels[latest] % _COLOURS]
    share = np.clip(_busy_share(timings, begins, edges, lane), 0, 1)[:, None]
    return 1 - share * (1 - colours)
