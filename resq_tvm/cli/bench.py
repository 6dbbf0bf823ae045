"""``resq-tvm bench``: latency of an artifact beside its bit operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import (
    ArtifactPath,
    Crop,
    Frames,
    Json,
    OptionalPeriod,
    RawShape,
    Threads,
    choose_clip,
)

if TYPE_CHECKING:
    from resq_tvm.breakeven import BreakEven


def bench(
    artifact: ArtifactPath,
    input: Annotated[
        str, typer.Option("--input", help="A clip as of 'run', or 'random'.")
    ] = "random",
    frames: Frames = None,
    crop: Crop = None,
    raw_shape: RawShape = None,
    period: OptionalPeriod = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Keyframes to measure.")] = 30,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Rounds that do not count.")] = 3,
    profile: Annotated[
        bool, typer.Option("--profile/--no-profile", help="Measure every kernel by itself.")
    ] = True,
    break_even: Annotated[
        bool,
        typer.Option(
            "--break-even/--no-break-even",
            help="Measure residual frames against the share that changed (dynamic schemes).",
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Measure OUT.resq: keyframe, residual and amortised milliseconds, per layer and in sum."""
    console = Console(
        json,
        "bench",
        artifact=artifact,
        input=input,
        frames=frames,
        crop=crop,
        raw_shape=raw_shape,
        period=period,
        threads=threads,
        repeats=repeats,
        warmup=warmup,
        profile=profile,
        break_even=break_even,
    )
    from resq_tvm.artifact import Artifact
    from resq_tvm.bench import benchmark
    from resq_tvm.predict import preprocessor_for

    loaded = Artifact.load(artifact)
    clip = None
    if input != "random":
        prepare = preprocessor_for(loaded.manifest)
        clip = choose_clip(
            input,
            frames=frames,
            crop=crop,
            raw_shape=raw_shape,
            size=(prepare.height, prepare.width),
        )
    with console.progress("bench") as progress:
        report = benchmark(
            loaded,
            clip,
            threads=threads,
            period=period,
            repeats=repeats,
            warmup=warmup,
            profile=profile,
            break_even=break_even,
            progress=progress,
        )
    console.resolve(period=report.period, threads=report.device["threads"])
    result = report.to_dict()

    def render(out: Any) -> None:
        if result["layers"]:
            out.print(_layer_table(result["layers"]))
        other = [k for k in report.kernels if k["layer"] is None]
        if other:
            rows = [(k["program"], k["name"], k["ms"]) for k in other]
            out.print(table(("program", "kernel without a layer", "ms"), rows))
        out.print(_summary_table(result))
        if report.break_even is not None:
            out.print(_break_even_table(report.break_even))
        device = report.device
        out.print(f"{device['cpu']}, {device['threads']} of {device['cpus']} CPUs, {device['os']}")

    console.finish(result, render)


def _break_even_table(measured: BreakEven) -> Any:
    rows: list[tuple[object, ...]] = [("keyframe", None, None, measured.keyframe_ms, 1.0, None)]
    if measured.frame_ms is not None:
        ratio = measured.frame_ms / measured.keyframe_ms
        rows.append(("frame without state", None, None, measured.frame_ms, ratio, 1.0))
    rows.append(("probe", None, None, measured.probe_ms, None, None))
    for point in measured.points:
        name = f"residual, {point.share:.0%} replaced"
        percent = (100 * point.changed, 100 * point.tiles)
        rows.append((name, *percent, point.ms, point.to_keyframe, point.to_frame))
    at = measured.stops_paying_at
    verdict = "residual frames always pay" if at is None else f"they pay up to {at:.0%} changed"
    columns = ("", "% changed", "% tiles", "ms", "x keyframe", "x frame")
    return table(columns, rows, f"break-even: {verdict}")


def _layer_table(layers: list[dict[str, Any]]) -> Any:
    columns = ("layer", "op", "MMACs", "key", "residual", "key ms", "res. ms", "key GMAC/s")
    rows = []
    for layer in layers:
        ms = layer["keyframe_ms"]
        rate = layer["macs"] / ms / 1e6 if ms else None
        rows.append(
            (
                layer["name"],
                layer["op"],
                layer["macs"] / 1e6,
                layer["key_bits"],
                layer["residual_bits"],
                ms,
                layer["residual_ms"],
                rate,
            )
        )
    return table(columns, rows)


def _summary_table(result: dict[str, Any]) -> Any:
    def program(name: str, key: str) -> tuple[object, ...]:
        ms, bops = result[key], result[f"bops_{name}"]
        gbops = None if bops is None else bops / 1e9
        if ms is None:
            return (name, None, None, None, gbops)
        return (name, ms["median"], ms["p10"], ms["p90"], gbops)

    amortized = result["bops_amortized"]
    rows = [
        program("keyframe", "keyframe_ms"),
        program("residual", "residual_ms"),
        (
            f"per frame, T = {result['period']}",
            result["amortized_ms"],
            None,
            None,
            None if amortized is None else amortized / 1e9,
        ),
    ]
    title = f"{result['scheme']} on {result['target']}: state {result['state_bytes'] / 1e6:.2f} MB"
    return table(("", "ms (median)", "p10", "p90", "GBOPs"), rows, title)
