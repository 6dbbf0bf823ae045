"""``resq-tvm bench``: latency of an artifact beside its bit operations."""

from __future__ import annotations

from pathlib import Path
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
    RpcPriority,
    Threads,
    choose_clip,
)
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.breakeven import BreakEven

REPEATS, WARMUP = 30, 3


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
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="Keyframes to measure: 30, or 1 if emulated."),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option("--warmup", min=0, help="Rounds that do not count: 3, or 0 if emulated."),
    ] = None,
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
    rpc_tracker: Annotated[
        str | None, typer.Option("--rpc-tracker", help="HOST:PORT: measure on a board there.")
    ] = None,
    rpc_key: Annotated[
        str | None, typer.Option("--rpc-key", help="The board's key at the tracker.")
    ] = None,
    rpc_priority: RpcPriority = 1,
    cores: Annotated[
        str | None,
        typer.Option(
            help="CPUs of the board that threads are pinned to: 'fast' (the default), 'slow', "
            "numbers such as 4,5, or 'free'."
        ),
    ] = None,
    cool_down: Annotated[
        float | None,
        typer.Option(help="Seconds that the board rests after every ten keyframes: 0.5."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="NPUs: write a timeline as Chrome trace JSON."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="NPUs: write a timeline as a PNG.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure OUT.resq: keyframe, residual and amortised milliseconds, per layer and in sum.

    With --rpc-tracker it runs on a board. An artifact for ARM boards otherwise runs on an emulated
    one (needs qemu) where this machine is none: its cycles and milliseconds are simulated. So are
    those of an artifact for an NPU; frames (--input) matter to them if it chooses bits.
    """
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
        rpc_tracker=rpc_tracker,
        rpc_key=rpc_key,
        rpc_priority=rpc_priority,
        cores=cores,
        cool_down=cool_down,
        trace=trace,
        picture=picture,
    )
    from resq_tvm.artifact import Artifact
    from resq_tvm.bench import benchmark
    from resq_tvm.cli.bench_simulated import bench_simulated
    from resq_tvm.manifest import Manifest
    from resq_tvm.predict import preprocessor_for
    from resq_tvm.targets.toolchain import is_foreign

    manifest = Manifest.read(artifact)
    board = None
    if rpc_tracker is not None:
        from resq_tvm.schedules.tuning.rpc import RpcAddress

        board = RpcAddress.parse(rpc_tracker, rpc_key, rpc_priority)
    elif cores is not None or cool_down is not None:
        raise ConfigError("--cores and --cool-down are for boards; name one with --rpc-tracker")
    simulated = board is None and (manifest.is_npu or is_foreign(manifest.target.name))
    if manifest.is_npu and board is not None:
        raise ConfigError(f"target {manifest.target.name} is simulated here; no board has one")
    if not manifest.is_npu and not (trace is None and picture is None):
        raise ConfigError(
            f"--trace and --picture are for NPUs, {artifact} is for {manifest.target.name}"
        )
    loaded = None if simulated or board is not None else Artifact.load(artifact)
    clip = None
    if input != "random":
        prepare = preprocessor_for(manifest)
        clip = choose_clip(
            input,
            frames=frames,
            crop=crop,
            raw_shape=raw_shape,
            size=(prepare.height, prepare.width),
        )
    if simulated:
        bench_simulated(
            console,
            artifact,
            clip,
            npu=manifest.is_npu,
            period=period,
            keyframes=repeats,
            warmup=warmup,
            threads=threads,
            profile=profile,
            trace=trace,
            picture=picture,
        )
        return
    common: dict[str, Any] = {
        "threads": threads,
        "period": period,
        "repeats": REPEATS if repeats is None else repeats,
        "warmup": WARMUP if warmup is None else warmup,
    }
    with console.progress("bench") as progress:
        if loaded is None:
            assert board is not None
            from resq_tvm.board_bench import COOL_DOWN_S, benchmark_on_board

            report = benchmark_on_board(
                artifact,
                board,
                clip,
                **common,
                cool_down_s=COOL_DOWN_S if cool_down is None else cool_down,
                cores=cores or "fast",
                progress=progress,
            )
        else:
            report = benchmark(
                loaded,
                clip,
                **common,
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
        if "board" in device:
            out.print(_board_line(device))

    console.finish(result, render)


def _board_line(device: dict[str, Any]) -> str:
    cpus = ", ".join(map(str, device["pinned"]))
    pinned = f"pinned to {cpus}" if cpus else "not pinned"
    clock = f", {device['clock_mhz']} of {device['highest_clock_mhz']} MHz at the end"
    return (
        f"measured on board {device['board']} of {device['tracker']}, not simulated; threads "
        f"{pinned}{clock if device['clock_mhz'] else ''}"
    )


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
