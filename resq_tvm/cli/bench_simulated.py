"""``resq-tvm bench`` of an artifact for an ARM board or an NPU: simulated cycles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_tvm.cli.console import Console, table
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.cycles import CycleReport
    from resq_tvm.npu.report import NpuCount, NpuReport
    from resq_tvm.simulate import ProgramCount, SimulatedReport
    from resq_tvm.video.clip import Clip


def bench_simulated(
    console: Console,
    artifact: Path,
    clip: Clip | None,
    *,
    npu: bool,
    period: int | None,
    keyframes: int | None,
    warmup: int | None,
    threads: int | None,
    profile: bool,
    trace: Path | None,
    picture: Path | None,
) -> None:
    """Simulate the artifact's cycles and print them.

    Raises
    ------
    ConfigError
        If an option does not go with a simulated machine.
    OutputError
        If a timeline cannot be written.
    """
    machine = "NPU runs one program" if npu else "emulated board has one core"
    if threads not in (None, 1):
        raise ConfigError(f"threads {threads}: the {machine}; use 1")
    if warmup:
        raise ConfigError(f"warmup {warmup}: simulated frames need none; leave it out")
    from resq_tvm.files import check_writable

    for path in (trace, picture):
        if path is not None:
            check_writable(path)
    report: CycleReport[Any]
    finish: Callable[[Any, dict[str, Any]], None]
    with console.progress("bench") as progress:
        if npu:
            from resq_tvm.npu import report as npu_report

            simulated = npu_report.simulate(
                artifact, clip, period=period, keyframes=keyframes or 1, progress=progress
            )
            _write_timelines(simulated, trace, picture)
            report, finish = simulated, partial(_render_npu, simulated)
        else:
            from resq_tvm.simulate import simulate

            emulated = simulate(
                artifact, clip, period=period, keyframes=keyframes or 1, progress=progress
            )
            report, finish = emulated, partial(_render_board, emulated)
    console.resolve(period=report.period, threads=1, simulated=True, **report.machine)
    result = report.to_dict()
    if not profile:
        result |= {"layers": [], "kernels": []}

    def render(out: Any) -> None:
        if result["layers"]:
            out.print(_layer_table(result["layers"]))
        finish(out, result)

    console.finish(result, render)


def _layer_table(layers: list[dict[str, Any]]) -> Any:
    columns = ("layer", "op", "MMACs", "key", "residual", "key Mcycles, simulated",
               "res. Mcycles, simulated", "key MAC/cycle, simulated")  # fmt: skip
    rows = []
    for layer in layers:
        key, residual = layer["keyframe_cycles"], layer["residual_cycles"]
        rows.append(
            (
                layer["name"],
                layer["op"],
                layer["macs"] / 1e6,
                layer["key_bits"],
                layer["residual_bits"],
                None if key is None else key / 1e6,
                None if residual is None else residual / 1e6,
                layer["macs"] / key if key else None,
            )
        )
    return table(columns, rows)


def _summary_table(
    report: CycleReport[Any],
    more: Sequence[str],
    figures: Callable[[Any], Sequence[object]],
    amortized: Sequence[object],
) -> Any:
    """Return the programs' figures and those per frame.

    ``more`` names the columns that only this kind of machine has, ``figures`` returns them for a
    program, ``amortized`` are those per frame.
    """
    result = report.to_dict()

    def gbops(name: str) -> float | None:
        bops = result[f"bops_{name}"]
        return None if bops is None else bops / 1e9

    rows: list[tuple[object, ...]] = []
    for name, count in (("keyframe", report.keyframe), ("residual", report.residual)):
        if count is None:
            rows.append((name, None, None, *(None for _ in more), gbops(name)))
        else:
            rows.append((name, count.ms, count.cycles / 1e6, *figures(count), gbops(name)))
    rows.append(
        (
            f"per frame, T = {report.period}",
            report.amortized_ms,
            report.amortized_cycles / 1e6,
            *amortized,
            gbops("amortized"),
        )
    )
    title = (
        f"{result['scheme']} on {result['target']}, simulated: "
        f"state {result['state_bytes'] / 1e6:.2f} MB"
    )
    return table(("", "simulated ms", "simulated Mcycles", *more, "GBOPs"), rows, title)


# --- emulated boards --------------------------------------------------------------------------


def _render_board(report: SimulatedReport, out: Any, result: dict[str, Any]) -> None:
    other = [k for k in result["kernels"] if k["layer"] is None]
    if other:
        rows = [(k["program"], k["name"], k["cycles"] / 1e6) for k in other]
        out.print(table(("program", "kernel without a layer", "simulated Mcycles"), rows))

    def figures(count: ProgramCount) -> tuple[object, ...]:
        machine = sum(count.kernels.values())
        return (count.cycles - machine) / 1e6, count.bound / count.cycles

    more = ("outside kernels", "bound / cycles")
    out.print(_summary_table(report, more, figures, (None, None)))
    clock = f"{report.core.clock_hz / 1e9:g} GHz"
    out.print(f"simulated: one {report.core.name} at {clock}, see docs/arm-emulation.md")


# --- NPUs -------------------------------------------------------------------------------------

_UNITS = ("matrix", "vector", "load", "store")
_TRAFFIC = ("dram_read", "dram_written", "state_read", "state_written")


def _render_npu(report: NpuReport, out: Any, result: dict[str, Any]) -> None:
    if result["kernels"]:
        out.print(_kernel_table(result["kernels"]))
    calls = [
        (name, call["operator"], call["cycles"] / 1e6)
        for name in ("keyframe", "residual")
        if result[name] is not None
        for call in result[name]["host_calls"]
    ]
    if calls:
        out.print(table(("program", "operator on the host", "estimated Mcycles"), calls))

    def figures(count: NpuCount) -> tuple[object, ...]:
        return (count.ms_without_state,)

    amortized = (result["amortized_ms_without_state"],)
    out.print(_summary_table(report, ("… without state traffic",), figures, amortized))
    out.print(_machine_table(result))
    for name in ("keyframe", "residual"):
        if result[name] is not None and (blocks := result[name]["blocks"]) is not None:
            total = sum(blocks.values())
            shares = ", ".join(f"{b} bits {n / total:.1%}" for b, n in sorted(blocks.items()))
            out.print(
                f"{name}: {result[name]['frames']} frame(s) of blocks that need {shares}; "
                f"{result[name]['skipped']:.1%} of all commands were skipped"
            )
    clock = f"{report.npu.clock_hz / 1e9:g} GHz"
    out.print(f"simulated: {report.npu.name} at {clock}, see docs/npu.md; the host is estimated")


def _machine_table(result: dict[str, Any]) -> Any:
    """Return what units do and what is moved, program by program."""
    rows = []
    for name in ("keyframe", "residual"):
        if (known := result[name]) is None:
            continue
        engines = known["engines"]
        rows.append(
            (
                name,
                *(_percent(engines[unit]["utilisation"]) for unit in _UNITS),
                max(known["bounds"], key=known["bounds"].__getitem__),
                *(known[key] / 1e6 for key in _TRAFFIC),
                known["host_cycles"] / known["cycles"],
            )
        )
    columns = ("", *_UNITS, "bound by", "MB read", "written", "state MB read", "written",
               "host's part")  # fmt: skip
    return table(columns, rows, "work of the units, simulated; traffic with the DRAM")


def _kernel_table(kernels: list[dict[str, Any]]) -> Any:
    columns = ("program", "kernel", "layer", "simulated Mcycles", *_UNITS, "bound by",
               "DRAM MB read", "written")  # fmt: skip
    rows = [
        (
            k["program"],
            k["name"],
            k["layer"],
            k["cycles"] / 1e6,
            *(_percent(k["utilisation"][unit]) for unit in _UNITS),
            k["bound_by"],
            k["dram_read"] / 1e6,
            k["dram_written"] / 1e6,
        )
        for k in kernels
    ]
    return table(columns, rows, "parts of each kernel's time in which a unit works for it")


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _write_timelines(report: NpuReport, trace: Path | None, picture: Path | None) -> None:
    """Write what the engines do in a keyframe and the residual frames behind it."""
    from resq_tvm.npu.timeline import draw_timeline, write_trace

    if trace is not None:
        write_trace(trace, report.first_frames)
    if picture is not None:
        draw_timeline(picture, report.first_frames)
