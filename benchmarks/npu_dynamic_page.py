"""What `benchmarks/npu_dynamic.py` finds, and the tables of it. All figures are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.npu_networks import UNITS, Figures
from resq_tvm.bench import amortize, amortized_bops
from resq_tvm.breakeven import SHARES, crossing
from resq_tvm.evaluate.judge import Errors
from resq_tvm.npu.report import NpuCount, NpuReport
from resq_tvm.targets.npu.description import Npu

FRAME = "W8A8"
STATICS = ("W8A8->W8A8", "W8A8->W8A4")
UNIT_HEAD = " | ".join("DRAM" if unit == "dram" else unit for unit in UNITS)
UNITS_TOLD = (
    "Units: million cycles in which each works for the frame (DRAM: its bytes at full bandwidth; "
    "issue: the command processor). They work side by side, so that a frame takes at least the "
    "largest."
)


@dataclass(frozen=True)
class Work:
    """A program on the frames that it ran, simulated.

    Attributes
    ----------
    cycles : tuple of int
        Of every frame.
    units : dict of str to float
        Cycles that it takes if one unit alone counts; the mean of the frames.
    bound : dict of str to float
        Share of the time that is spent in kernels that each unit bounds.
    megabytes, state_megabytes : float
        To and from DRAM; those of them that are residual state.
    blocks : dict of int to float
        Share of the pixel blocks of matrix commands by the bits that they needed; empty where bits
        are fixed.
    """

    cycles: tuple[int, ...]
    units: dict[str, float]
    bound: dict[str, float]
    megabytes: float
    state_megabytes: float
    blocks: dict[int, float]

    @classmethod
    def of(cls, count: NpuCount, npu: Npu) -> Work:
        """Read it off a program's count."""
        told, figures = count.summary(), Figures.of(count, npu)
        blocks = told["blocks"] or {}
        total = sum(blocks.values())
        return cls(
            tuple(timing.cycles for timing in count.timings),
            {unit: told["bounds"][unit] for unit in UNITS},
            figures.bound,
            figures.megabytes,
            figures.state_megabytes,
            {bits: blocks[bits] / total for bits in sorted(blocks)},
        )

    @property
    def mean(self) -> float:
        """Cycles of a frame."""
        return float(np.mean(self.cycles))

    def percentile(self, percent: float) -> float:
        """Return the cycles that so many percent of the frames do not exceed."""
        return float(np.percentile(self.cycles, percent))


@dataclass(frozen=True)
class Programs:
    """What one artifact takes on one machine.

    ``residual`` is None where every frame is computed on its own. ``bops`` are bit operations of a
    frame, the mean of a period, with the most bits of every pool.
    """

    npu: str
    clock_hz: float
    scheme: str
    period: int
    keyframe: Work
    residual: Work | None
    bops: float | None

    @classmethod
    def of(cls, report: NpuReport) -> Programs:
        """Read it off a report."""
        npu, residual = report.npu, report.residual
        return cls(
            npu.name,
            npu.clock_hz,
            report.manifest.scheme,
            report.period,
            Work.of(report.keyframe, npu),
            None if residual is None else Work.of(residual, npu),
            amortized_bops(report.manifest, report.period),
        )

    @property
    def frame(self) -> Work:
        """The residual program, or the one that computes every frame."""
        return self.keyframe if self.residual is None else self.residual

    def amortized(self, unit: str | None = None) -> float:
        """Return cycles of a frame, the mean of a period; of one unit, if it alone counts."""

        def told(work: Work) -> float:
            return work.mean if unit is None else work.units[unit]

        residual = None if self.residual is None else told(self.residual)
        return amortize(told(self.keyframe), residual, self.period)


@dataclass(frozen=True)
class ClipResult:
    """A case: what every machine takes, frame by frame and with residuals, and the errors.

    ``every`` and ``unseen`` are errors on residual frames: of all, and of those behind the frames
    that thresholds were fitted on, in ``unit``.
    """

    case: str
    frames: int
    pairs: tuple[tuple[Programs, Programs], ...]
    unit: str
    every: Errors
    unseen: Errors


@dataclass(frozen=True)
class BreakEven:
    """A machine: residual frames of which a share was replaced, beside what they compete with.

    Attributes
    ----------
    thresholds : tuple of float
        The least and the largest of the network's.
    frame : Programs
        W8A8, every frame on its own.
    statics : tuple of Programs
        Of `STATICS`.
    points : tuple of Programs
        One per share of `SHARES`.
    """

    thresholds: tuple[float, float]
    frame: Programs
    statics: tuple[Programs, ...]
    points: tuple[Programs, ...]

    def stops_paying(self, level: float) -> float | None:
        """Return the replaced share from which a residual frame takes more cycles than that."""
        return crossing(SHARES, [p.frame.mean for p in self.points], level)


@dataclass(frozen=True)
class Drive:
    """A machine: schemes on a drive; ``pixel_bops`` of the last one, with every pixel's bits."""

    frame: Programs
    schemes: tuple[Programs, ...]
    pixel_bops: float


def _millions(cycles: float) -> str:
    return f"{cycles / 1e6:.3f}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _units(work: Work) -> str:
    return " | ".join(_millions(work.units[unit]) for unit in UNITS)


def _bound(work: Work) -> str:
    parts = {unit: share for unit, share in work.bound.items() if share >= 0.005}
    return ", ".join(
        f"{'DRAM' if unit == 'dram' else unit} {_percent(share)}"
        for unit, share in sorted(parts.items(), key=lambda item: -item[1])
    )


def _blocks(work: Work) -> str:
    return ", ".join(f"{bits}: {share:.1%}" for bits, share in work.blocks.items()) or "–"


def _table(head: str, rows: Sequence[str]) -> list[str]:
    return [f"| {head} |", "|" + " --- |" * (head.count("|") + 1), *rows]


# --- clips --------------------------------------------------------------------------------------


def clip_line(frame: Programs, dynamic: Programs) -> str:
    """Return a machine's row of the table of cycles."""
    residual, mean = dynamic.frame, dynamic.amortized()
    cells = [
        frame.keyframe.mean, dynamic.keyframe.mean, residual.percentile(50),
        residual.percentile(90), mean,
    ]  # fmt: skip
    return (
        f"| {dynamic.npu} | {' | '.join(map(_millions, cells))} "
        f"| {mean / dynamic.clock_hz * 1e3:.3f} | {mean / frame.keyframe.mean:.2f} |"
    )


def clip_page(result: ClipResult) -> list[str]:
    """Return the section of a clip."""
    scheme, period = result.pairs[0][1].scheme, result.pairs[0][1].period
    every, unseen = result.every, result.unseen
    programs = [
        (frame.npu, name, work)
        for frame, dynamic in result.pairs
        for name, work in (
            ("frame W8A8", frame.keyframe),
            ("keyframe", dynamic.keyframe),
            ("residual", dynamic.frame),
        )
    ]
    return [
        f"{scheme}, T = {period}, {result.frames} frames. All cycles are simulated, in millions.",
        "",
        *_table(
            "machine | frame W8A8 | keyframe | residual, median | residual, p90 | amortised "
            "| simulated ms, amortised | / frame W8A8",
            [clip_line(*pair) for pair in result.pairs],
        ),
        "",
        f"Errors on residual frames, in {result.unit}, judged on the outputs of "
        f"{result.pairs[0][0].npu} (bits are the same on every machine):",
        "",
        *_table(
            "frames | e | F | H | recovery",
            [
                f"| {name} | {e.scheme:.2f} | {e.frame:.2f} | {e.hold:.2f} | "
                + ("–" if e.recovery is None else f"{e.recovery:.2f}")
                + " |"
                for name, e in (("all", every), ("unseen", unseen))
            ],
        ),
        "",
        f"Where cycles go. {UNITS_TOLD}",
        "",
        *_table(
            f"machine | program | {UNIT_HEAD} | state, MB | blocks by bits | time is bound by",
            [
                f"| {npu} | {name} | {_units(work)} | {work.state_megabytes:.1f} "
                f"| {_blocks(work)} | {_bound(work)} |"
                for npu, name, work in programs
            ],
        ),
    ]


# --- break-even ---------------------------------------------------------------------------------


def break_even_lines(found: BreakEven) -> list[str]:
    """Return a machine's rows: residual frames by share, then what they compete with."""
    frame = found.frame.keyframe.mean
    static, narrow = (p.frame.mean for p in found.statics)

    def row(name: str, work: Work) -> str:
        ratios = " | ".join(f"{work.mean / level:.2f}" for level in (frame, static, narrow))
        return (
            f"| {found.frame.npu} | {name} | {_blocks(work)} | {_millions(work.mean)} | {ratios} "
            f"| {_units(work)} |"
        )

    return [
        *(
            row(f"{_percent(share)} replaced", point.frame)
            for share, point in zip(SHARES, found.points, strict=True)
        ),
        *(row(f"static {p.scheme}", p.frame) for p in found.statics),
        row("frame W8A8", found.frame.keyframe),
    ]


def break_even_page(results: Sequence[BreakEven]) -> list[str]:
    """Return the section of a network."""
    low, high = results[0].thresholds
    told = f"tau = {low:g}" if low == high else f"tau from {low:.1g} to {high:.1g}, fitted"
    return [
        f"A residual frame of {results[0].points[0].scheme}, {told}, of which a rectangle was "
        f"replaced by noise. All cycles are simulated, in millions. {UNITS_TOLD}",
        "",
        *_table(
            "machine | residual frame | blocks by bits | cycles | / frame W8A8 "
            f"| / static {STATICS[0]} | / static {STATICS[1]} | {UNIT_HEAD}",
            [line for found in results for line in break_even_lines(found)],
        ),
        "",
        *(line for found in results for line in (_verdict(found), "")),
    ][:-1]


def _verdict(found: BreakEven) -> str:
    """Say where skipping stops paying, and what of each unit goes away with the blocks."""
    none, every = found.points[0].frame, found.points[-1].frame
    kept = ", ".join(
        f"{'DRAM' if unit == 'dram' else unit} {_percent(none.units[unit] / every.units[unit])}"
        for unit in UNITS
    )
    levels = [("frame W8A8", found.frame), *((f"static {p.scheme}", p) for p in found.statics)]
    pays = "; ".join(
        f"against {name} {_paying(found.stops_paying(p.frame.mean))}" for name, p in levels
    )
    return (
        f"{found.frame.npu}: a frame in which nothing changed takes "
        f"{_percent(none.mean / every.mean)} of the cycles of one that changed everywhere; what "
        f"is left of each unit's work: {kept}. Skipping pays {pays}."
    )


def _paying(share: float | None) -> str:
    if share is None:
        return "always"
    return "never" if share == 0 else f"up to {share:.1%} replaced"


# --- drive --------------------------------------------------------------------------------------


def drive_lines(result: Drive) -> list[str]:
    """Return a machine's rows: frame by frame, then every scheme."""
    base = result.frame

    def row(programs: Programs, cost: float | None) -> str:
        residual = programs.residual
        spread = "– | –"
        if residual is not None:
            spread = " | ".join(_millions(residual.percentile(p)) for p in (50, 90))
        ratio = "–" if cost is None or not base.bops else f"{cost / base.bops:.2f}"
        units = " | ".join(
            f"{programs.amortized(unit) / base.keyframe.units[unit]:.2f}" for unit in UNITS
        )
        return (
            f"| {programs.npu} | {programs.scheme} | {_millions(programs.keyframe.mean)} "
            f"| {spread} | {_millions(programs.amortized())} | {ratio} "
            f"| {programs.amortized() / base.keyframe.mean:.2f} | {units} "
            f"| {_blocks(programs.frame)} | {_bound(programs.frame)} |"
        )

    *fixed, dynamic = result.schemes
    return [
        row(base, base.bops),
        *(row(programs, programs.bops) for programs in fixed),
        row(dynamic, result.pixel_bops),
    ]


def drive_page(results: Sequence[Drive], frames: int) -> list[str]:
    """Return the section of the drive."""
    return [
        f"ESPNet on camvid/val, T = {results[0].schemes[-1].period}, tau = 3e-4, {frames} frames "
        "behind those that calibrate. All cycles are simulated, in millions. What stands after the "
        "amortised cycles is relative to frame W8A8, the mean of a period: bit operations (with "
        "the bits of every pixel, choosing them included), cycles, and cycles if one unit alone "
        "counts.",
        "",
        *_table(
            "machine | scheme | keyframe | residual, median | residual, p90 | amortised | BOPs "
            f"| cycles | {UNIT_HEAD} | blocks by bits | residual's time is bound by",
            [line for result in results for line in drive_lines(result)],
        ),
    ]
