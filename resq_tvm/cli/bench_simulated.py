"""``resq-tvm bench`` of an artifact for an ARM board: counts of the emulated board, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_tvm.cli.console import Console, table
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.simulate import ProgramCount, SimulatedReport
    from resq_tvm.video.clip import Clip


def bench_simulated(
    console: Console,
    artifact: Path,
    clip: Clip | None,
    *,
    period: int | None,
    keyframes: int | None,
    warmup: int | None,
    threads: int | None,
    profile: bool,
) -> None:
    """Count the artifact's cycles and print them.

    Raises
    ------
    ConfigError
        If an option does not go with an emulated board.
    """
    if threads not in (None, 1):
        raise ConfigError(f"threads {threads}: the emulated board has one core; use 1")
    if warmup:
        raise ConfigError(f"warmup {warmup}: simulated frames need none; leave it out")
    from resq_tvm.simulate import simulate

    with console.progress("bench") as progress:
        report = simulate(
            artifact, clip, period=period, keyframes=keyframes or 1, progress=progress
        )
    console.resolve(period=report.period, threads=1, simulated=True, core=report.core.name)
    result = report.to_dict()
    if not profile:
        result |= {"layers": [], "kernels": []}

    def render(out: Any) -> None:
        if result["layers"]:
            out.print(_layer_table(result["layers"]))
        other = [k for k in result["kernels"] if k["layer"] is None]
        if other:
            rows = [(k["program"], k["name"], k["cycles"] / 1e6) for k in other]
            columns = ("program", "kernel without a layer", "simulated Mcycles")
            out.print(table(columns, rows))
        out.print(_summary_table(report))
        clock = f"{report.core.clock_hz / 1e9:g} GHz"
        out.print(f"simulated: one {report.core.name} at {clock}, see docs/arm-emulation.md")

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


def _summary_table(report: SimulatedReport) -> Any:
    result = report.to_dict()

    def program(name: str, count: ProgramCount | None) -> tuple[object, ...]:
        bops = result[f"bops_{name}"]
        gbops = None if bops is None else bops / 1e9
        if count is None:
            return (name, None, None, None, None, gbops)
        machine = sum(count.kernels.values())
        return (
            name,
            count.ms,
            count.cycles / 1e6,
            (count.cycles - machine) / 1e6,
            count.bound / count.cycles,
            gbops,
        )

    bops = result["bops_amortized"]
    rows = [
        program("keyframe", report.keyframe),
        program("residual", report.residual),
        (
            f"per frame, T = {report.period}",
            report.amortized_ms,
            report.amortized_cycles / 1e6,
            None,
            None,
            None if bops is None else bops / 1e9,
        ),
    ]
    title = (
        f"{result['scheme']} on {result['target']}, simulated: "
        f"state {result['state_bytes'] / 1e6:.2f} MB"
    )
    columns = ("", "simulated ms", "simulated Mcycles", "outside kernels", "bound / cycles",
               "GBOPs")  # fmt: skip
    return table(columns, rows, title)
