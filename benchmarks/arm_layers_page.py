"""docs/arm.md: what the rows of `benchmarks.arm_layers` say."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resq_tvm.targets.emulated.cores import get_core

BASE = "W8A8"
SCHEMES = {"W8A8": (8, 8), "W8A4": (8, 4), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3),
           "W2A2": (2, 2)}  # fmt: skip
PORT_BOUND = {"cortex-a53": 5.2, "cortex-a72": 7.9, "cortex-a76": 31.6}  # W8A8, MAC per cycle
BARS = (
    ("cortex-a53", "W4A4", 1.7),
    ("cortex-a53", "W3A3", 2.1),
    ("cortex-a53", "W2A2", 3.0),
    ("cortex-a53-cautious", "W4A4", 1.7),
    ("cortex-a53-cautious", "W3A3", 2.1),
    ("cortex-a53-cautious", "W2A2", 3.0),
    ("cortex-a72", "W2A2", 2.0),
)
BOUND_BAR = 0.8
LEAST_CHANNELS = 32
EVICTED = 4 << 20  # bytes of other memory that are touched before a run with caches
DETAILED = ("cortex-a53", "cortex-a72")
SHORT, LONG = 128, 576  # products per output
_PAYS = 1.1  # below that, low bits are not worth their accuracy


@dataclass(frozen=True)
class Row:
    """One convolution kernel of one scheme on one emulated core; cycles are simulated.

    Attributes
    ----------
    core, scheme : str
    layer : str
        The first of `layers` layers whose kernels are alike in every scheme.
    shape : str
    channels : int
        The lesser of input and output channels.
    depth : int
        Products per output: K.
    macs, whole_macs : int
        Of the plane that was run, and of the layer's.
    kernel : str
        The kernel scheme that the compiler chose.
    cycles : int
        Without cache misses.
    bound : float
        Cycles that the ports need for the same instructions.
    cached_cycles : int
        With the core's caches and weights in memory; 0 where that was not run.
    """

    core: str
    scheme: str
    layer: str
    layers: int
    shape: str
    channels: int
    depth: int
    macs: int
    whole_macs: int
    kernel: str
    cycles: int
    bound: float
    cached_cycles: int = 0

    @property
    def speed(self) -> float:
        """MAC per cycle."""
        return self.macs / self.cycles

    @property
    def cached_speed(self) -> float:
        """MAC per cycle with cache misses; 0 where that was not run."""
        return self.macs / self.cached_cycles if self.cached_cycles else 0.0


Speed = Callable[[Row], float]


def promise(scheme: str) -> float:
    """Return how much fewer bit operations than W8A8 a scheme needs."""
    weights, activations = SCHEMES[scheme]
    return 64 / (weights * activations)


def chosen(rows: Sequence[Row], core: str, scheme: str, least: int = 0) -> list[Row]:
    """Return a core's rows of a scheme, of layers with at least so many channels."""
    return [r for r in rows if (r.core, r.scheme) == (core, scheme) and r.channels >= least]


@dataclass(frozen=True)
class Gain:
    """How much faster a kernel is than our own W8A8 kernel of the same layer and core."""

    row: Row
    value: float


def gains(
    rows: Sequence[Row], core: str, scheme: str, least: int = LEAST_CHANNELS,
    speed: Speed = lambda r: r.speed,
) -> list[Gain]:  # fmt: skip
    """Return a scheme's gains on layers with at least so many channels."""
    base = {r.layer: speed(r) for r in chosen(rows, core, BASE, least)}
    return [
        Gain(r, speed(r) / base[r.layer])
        for r in chosen(rows, core, scheme, least)
        if base.get(r.layer) and speed(r)
    ]


def over_layers(rows: Sequence[Row], values: Sequence[float]) -> float:
    """Return the geometric mean over layers: a kernel counts as often as it occurs."""
    total = sum(r.layers * math.log(v) for r, v in zip(rows, values, strict=True))
    return math.exp(total / sum(r.layers for r in rows))


def mean_gain(found: Sequence[Gain]) -> float:
    """Return the geometric mean of gains over layers."""
    return over_layers([g.row for g in found], [g.value for g in found])


def network_gain(rows: Sequence[Row], core: str, scheme: str) -> float:
    """Return the gain over all convolutions of the network, each as often as it occurs."""

    def cycles(name: str) -> float:
        return sum(r.layers * r.whole_macs / r.speed for r in chosen(rows, core, name))

    return cycles(BASE) / cycles(scheme)


def page(rows: Sequence[Row], stamps: Sequence[str]) -> list[str]:
    """Return the page's lines; ``stamps`` tell the runs that measured."""
    cores = list(dict.fromkeys(r.core for r in rows))
    how = "Every load hits the first cache level."
    if any(row.cached_cycles for row in rows):
        how += (
            f" *With caches*: the core's caches are modelled, and {EVICTED >> 20} MiB of other "
            "memory displaced the weights before."
        )
    lines = [
        "# Convolutions on ARM: which bits pay on which core",
        "",
        *(line for stamp in stamps for line in (stamp, "")),
        "**All cycles are simulated** (docs/arm-emulation.md: how, and what is in doubt; absolute "
        "figures on in-order cores may be too good by a third). Measured are the convolution "
        "kernels of DDRNet-23-slim at 256×512 as the compiler emits them, with their epilogues "
        "(dequantize, shortcut, ReLU, quantize), in networks calibrated at these bits, so that "
        "every proof that narrow sums cannot overflow is one about real weights. Kernels that are "
        "alike in every scheme are run once. Outputs are held against the reference; one that "
        "differs ends the benchmark. Of tall planes the first rows are run (how many: above); the "
        "unpacking of weights, once per run, then weighs too much, by less than 1 %. "
        f"{how}",
        "",
        f"*Gain*: how much faster than our own {BASE} kernel of the same layer in the same run; "
        f"geometric mean over the layers with at least {LEAST_CHANNELS} input and output channels. "
        "*Network*: the same for all convolutions together, each as often as it occurs. *BOPs*: "
        "what counting bit operations promises. *Of the port bound*: mean MAC per cycle over what "
        f"the ports let a hand-written {BASE} kernel reach, "
        + ", ".join(f"{v} on {k}" for k, v in PORT_BOUND.items())
        + ". *Of its own bound*: cycles that the ports need for the emitted instructions, over "
        "the cycles taken.",
        "",
        *_bars(rows),
    ]
    for core in cores:
        lines += _core_table(rows, core)
    for core in cores:
        if core in DETAILED:
            lines += _layer_table(rows, core)
    lines += ["## Where low bits do not pay", ""]
    for core in cores:
        lines += _where_not(rows, core)
    return lines


def _verdict(value: float, bar: float) -> str:
    return "met" if value >= bar else f"missed by {1 - value / bar:.1%}"


def _bars(rows: Sequence[Row]) -> list[str]:
    """Return what was asked for beside what came out."""
    lines = []
    for core, scheme, bar in BARS:
        if found := gains(rows, core, scheme):
            value = mean_gain(found)
            lines.append(
                f"| {core} | gain of {scheme} | {bar} × | {value:.3f} × | {_verdict(value, bar)} |"
            )
    for core, bound in PORT_BOUND.items():
        if own := chosen(rows, core, BASE, LEAST_CHANNELS):
            shares = [r.speed / bound for r in own]
            value = over_layers(own, shares)
            layers = sum(r.layers for r in own)
            below = sum(r.layers for r in own if r.speed / bound < BOUND_BAR)
            lines.append(
                f"| {core} | {BASE} of the port bound | {BOUND_BAR:.0%} | {value:.0%} "
                f"({min(shares):.0%} to {max(shares):.0%}) | {_verdict(value, BOUND_BAR)}; "
                f"{below} of {layers} layers are below |"
            )
    if not lines:
        return []
    head = ["## Asked for and reached (simulated)", "", "| core | what | bar | reached | |"]
    return [*head, "|" + " --- |" * 5, *lines, ""]


def _core_table(rows: Sequence[Row], core: str) -> list[str]:
    model = get_core(core)
    order = "in order" if model.in_order else f"out of order, window {model.window}"
    table = [
        _core_cells(rows, core, scheme)
        for scheme in SCHEMES
        if chosen(rows, core, scheme, LEAST_CHANNELS)
    ]
    if not table:
        return []
    return [
        f"## {core} (simulated)",
        "",
        f"{order.capitalize()}, {model.width} wide; for example {model.board}.",
        "",
        f"| {' | '.join(table[0])} |",
        "|" + " --- |" * len(table[0]),
        *(f"| {' | '.join(cells.values())} |" for cells in table),
        "",
    ]


def _core_cells(rows: Sequence[Row], core: str, scheme: str) -> dict[str, str]:
    """Return a row of the core's table, by heading."""
    own = chosen(rows, core, scheme, LEAST_CHANNELS)
    speeds = [r.speed for r in own]
    spread = [r.speed for r in own for _ in range(r.layers)]
    port = PORT_BOUND.get(core)
    kernels = Counter[str]()
    for row in own:
        kernels[row.kernel] += row.layers
    caches = any(r.cached_cycles for r in rows if r.core == core)
    cached = gains(rows, core, scheme, speed=lambda r: r.cached_speed)
    return {
        "bits": scheme,
        "BOPs": f"{promise(scheme):.3g} ×",
        "gain": _mean_or_dash(gains(rows, core, scheme)),
        **({"with caches": _mean_or_dash(cached)} if caches else {}),
        "network": f"{network_gain(rows, core, scheme):.2f}",
        "MAC per cycle, median (range)": (
            f"{statistics.median(spread):.2f} ({min(spread):.2f} to {max(spread):.2f})"
        ),
        "of the port bound": (
            f"{over_layers(own, speeds) / port:.0%}" if port and scheme == BASE else "–"
        ),
        "of its own bound": f"{over_layers(own, [r.bound / r.cycles for r in own]):.0%}",
        "kernels chosen": ", ".join(f"{name} {count}" for name, count in kernels.most_common()),
    }


def _mean_or_dash(found: Sequence[Gain]) -> str:
    return f"{mean_gain(found):.2f}" if found else "–"


def _layer_table(rows: Sequence[Row], core: str) -> list[str]:
    present = [s for s in ("W4A4", "W3A3", "W2A2") if chosen(rows, core, s)]
    head = "".join(f" {s} | gain |" for s in present)
    lines = [
        f"## Layers on {core} (simulated)", "",
        "Thousand cycles of the whole layer, from those of the rows that were run; the kernel "
        "beside each. K: products per output.", "",
        f"| layer | like it | shape | K | {BASE} |{head}",
        "|" + " --- |" * (5 + 2 * len(present)),
    ]  # fmt: skip
    tables = {s: {r.layer: r for r in chosen(rows, core, s)} for s in (BASE, *present)}

    def cycles(row: Row) -> str:
        return f"{row.whole_macs / row.speed / 1e3:.0f} {row.kernel}"

    for layer, base in tables[BASE].items():
        cells = [layer, str(base.layers), base.shape, str(base.depth), cycles(base)]
        for scheme in present:
            row = tables[scheme].get(layer)
            cells += [cycles(row), f"{row.speed / base.speed:.2f}"] if row else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _where_not(rows: Sequence[Row], core: str) -> list[str]:
    """Return a core's sentences: bits that gain nothing, then layers that do not."""
    found = {s: gains(rows, core, s) for s in SCHEMES if s != BASE}
    means = {s: mean_gain(g) for s, g in found.items() if g}
    lost = [s for s, m in means.items() if m < _PAYS]
    paying = [s for s in means if s not in lost]

    def told(schemes: Sequence[str]) -> str:
        return ", ".join(f"{s} {means[s]:.2f} × of {promise(s):.3g} ×" for s in schemes)

    lines = []
    if lost:
        lines.append(
            f"* Do not pay on {core} (gain of what BOPs promise): {told(lost)}. They save storage, "
            f"and whatever work is skipped.{_same_kernel(rows, core, lost)}"
        )
    if paying:
        lines.append(f"* Pay on {core}, but less than BOPs promise: {told(paying)}.")
    for scheme in paying:
        poor = sorted(
            (g for g in gains(rows, core, scheme, least=0) if g.value < _PAYS),
            key=lambda g: g.value,
        )
        if poor:
            named = ", ".join(f"{g.row.shape} ({g.value:.2f} ×)" for g in poor[:4])
            more = f" and {len(poor) - 4} more kernels" if len(poor) > 4 else ""
            lines.append(f"* {scheme} on {core} does not pay on {named}{more}.")
    return [*lines, *_by_depth(rows, core, paying), *_by_caches(rows, core, paying), ""]


def _same_kernel(rows: Sequence[Row], core: str, schemes: Sequence[str]) -> str:
    """Return which schemes run the kernels of W8A8."""

    def kernels(scheme: str) -> dict[str, str]:
        return {r.layer: r.kernel for r in chosen(rows, core, scheme)}

    base = kernels(BASE)
    same = [s for s in schemes if kernels(s) == base]
    if not same:
        return ""
    names = " and ".join(dict.fromkeys(base.values()))
    return f" The compiler chooses the kernels of {BASE} ({names}) for {', '.join(same)} there."


def _by_depth(rows: Sequence[Row], core: str, schemes: Sequence[str]) -> list[str]:
    """Return what short sums lose: their epilogue costs the same whatever the bits."""
    parts = []
    for scheme in schemes:
        found = gains(rows, core, scheme)
        short = [g for g in found if g.row.depth <= SHORT]
        long = [g for g in found if g.row.depth >= LONG]
        if short and long:
            parts.append(f"{scheme} {mean_gain(short):.2f} × beside {mean_gain(long):.2f} ×")
    if not parts:
        return []
    return [
        f"* The epilogue costs the same whatever the bits, so that gains depend on how much there "
        f"is to sum. Layers with K up to {SHORT} beside those with K from {LONG} on {core}: "
        f"{', '.join(parts)}."
    ]


def _by_caches(rows: Sequence[Row], core: str, schemes: Sequence[str]) -> list[str]:
    """Return what is left of the gains where weights come from memory."""
    parts = []
    for scheme in schemes:
        found = gains(rows, core, scheme, speed=lambda r: r.cached_speed)
        if found:
            least = min(found, key=lambda g: g.value)
            parts.append(
                f"{scheme} {mean_gain(found):.2f} ×, the least {least.value:.2f} × on "
                f"{least.row.shape}"
            )
    if not parts:
        return []
    return [f"* With caches, and weights in memory, on {core}: {'; '.join(parts)}."]
