"""The epilogue of a kernel as a program of the vector unit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from resq_tvm.schedules.spec import (
    Conv,
    FusedKernel,
    Gate,
    GlobalMean,
    Pool,
    Resize,
    Store,
    Walk,
    Window,
)
from resq_tvm.targets.npu.commands import Step, VectorProgram

ANCHOR = "anchor"  # the operand of accumulators


@dataclass(frozen=True)
class Epilogue:
    """A vector program and what its operands are.

    Attributes
    ----------
    steps : tuple of Step
    loads : tuple of str
        Input tensors that are read at the output's pixels, in operand order, behind the anchor's
        own operand.
    masks : tuple of str
        Maps of those that have one, behind them: where a map is 0, the input is taken for 0.
    vectors : tuple of str
        Per-channel constants, behind these.
    writes : tuple of str
        Output tensors, then maps of bits.
    anchored : bool
        Whether operand 0 is the anchor's: accumulators or the input of a spatial operator.
    anchor_map : str or None
        Map of the latter, which is operand 1.
    """

    steps: VectorProgram
    loads: tuple[str, ...]
    masks: tuple[str, ...]
    vectors: tuple[str, ...]
    writes: tuple[str, ...]
    anchored: bool
    anchor_map: str | None


def epilogue_of(kernel: FusedKernel, thresholds: tuple[float, ...], whole: bool) -> Epilogue:
    """Translate a kernel's nodes and stores.

    Parameters
    ----------
    kernel : FusedKernel
        The changed blocks of a gate are an operand behind the constants.
    thresholds : tuple of float
        The program's, by which choices decide.
    whole : bool
        Whether a tile has all channels of a pixel. Otherwise nobody can tell from one tile whether
        all of a pixel is zero, and maps say that every pixel of a tile changed.
    """
    anchored = not isinstance(kernel.anchor, Walk)
    loads = _names(kernel, "load")
    vectors = _names(kernel, "vector")
    maps = kernel.sparse.maps if kernel.sparse is not None else {}
    anchor_map = None
    if isinstance(kernel.anchor, Pool | GlobalMean | Resize | Window):
        anchor_map = maps[kernel.anchor.input].name if kernel.anchor.input in maps else None
    masks = tuple(dict.fromkeys(maps[name].name for name in loads if name in maps))
    first = int(anchored) + (anchor_map is not None)
    place = {name: first + i for i, name in enumerate((*loads, *masks, *vectors))}
    steps: list[Step] = []
    ids: list[int] = []  # of the nodes
    for node in kernel.nodes:
        args = tuple(ids[a] for a in node.args)
        match node.op:
            case "anchor":
                step = _anchor(kernel, anchor_map is not None)
            case "load" if node.name in maps:
                steps.append(Step("read", index=place[node.name]))
                steps.append(Step("read", index=place[maps[node.name].name]))
                steps.append(Step("scalar"))
                n = len(steps)
                step = Step("select", (n - 2, n - 3, n - 1))
            case "load" | "vector":
                step = Step("read", index=place[node.name])
            case "gate":
                steps.append(_spread(kernel, first + len(place)))
                step = Step("select", (len(steps) - 1, *args))
            case "quantize":
                step = Step("quantize", args, node.value, node.limit)
            case _:
                step = Step(node.op, args, node.value)
        ids.append(len(steps))
        steps.append(step)
    writes: list[str] = []
    out_maps = kernel.sparse.out_maps if kernel.sparse is not None else {}
    late: list[tuple[int, str]] = []
    operand = first + len(place) + (kernel.gate is not None)
    for store in kernel.stores:
        value = ids[store.node]
        if store.choice is not None:
            steps.append(_choice(store, value, thresholds))
            value = len(steps) - 1
            steps.append(Step("bits", (value,)))
            late.append((len(steps) - 1, out_maps[store.name].name))
        steps.append(Step("write", (value,), index=operand + len(writes)))
        writes.append(store.name)
    late += _changed_maps(kernel, ids, steps, whole)
    for value, name in late:
        steps.append(Step("write", (value,), index=operand + len(writes)))
        writes.append(name)
    return Epilogue(tuple(steps), loads, masks, vectors, tuple(writes), anchored, anchor_map)


def _changed_maps(
    kernel: FusedKernel, ids: list[int], steps: list[Step], whole: bool
) -> list[tuple[int, str]]:
    """Append what finds the maps of outputs without a choice of bits; return values and names.

    Where a pixel of such an output is not all zero, its map has the bits of the widest codes.
    """
    out_maps = kernel.sparse.out_maps if kernel.sparse is not None else {}
    found: dict[str, int] = {}
    for store in kernel.stores:
        if store.choice is not None or store.name not in out_maps:
            continue
        name = out_maps[store.name].name
        node = kernel.nodes[store.node]
        bits = node.limit.bit_length() + 1 if node.op == "quantize" else 8
        if whole:
            steps.append(Step("nonzero", (ids[store.node],), float(bits)))
        else:
            steps.append(Step("scalar", value=float(bits)))
        if name in found:
            steps.append(Step("max", (found[name], len(steps) - 1)))
        found[name] = len(steps) - 1
    return [(value, name) for name, value in found.items()]


def energy_program(kernel: FusedKernel) -> tuple[VectorProgram, tuple[str, ...]]:
    """Return the program that sums up the squares of what a gate compares, and what it reads.

    The operands are the inputs that it reads, in order, then the plane of block energies.
    """
    gate = kernel.gate
    assert gate is not None
    (node,) = [n for n in kernel.nodes if n.op == "gate"]
    steps: list[Step] = []
    ids: dict[int, int] = {}
    loads: list[str] = []

    def add(index: int) -> int:
        if index not in ids:
            source = kernel.nodes[index]
            args = tuple(add(a) for a in source.args)
            if source.op == "load":
                step = Step("read", index=len(loads))
                loads.append(source.name)
            else:
                step = Step(source.op, args, source.value, source.limit)
            steps.append(step)
            ids[index] = len(steps) - 1
        return ids[index]

    frame, key = (add(a) for a in node.args)
    steps.append(Step("sub", (frame, key)))
    facts = (("block", gate.block),)
    steps.append(Step("energy", (len(steps) - 1,), gate.reciprocal, table=facts))
    steps.append(Step("write", (len(steps) - 1,), index=len(loads)))
    return tuple(steps), tuple(loads)


def changed_program(gate: Gate, threshold: float) -> VectorProgram:
    """Return the program from block energies (operand 0) to changed blocks (operand 1)."""
    facts = (("reach", gate.reach), ("threshold", threshold))
    return (
        Step("read", index=0),
        Step("changed", (0,), table=facts),
        Step("write", (1,), index=1),
    )


def _spread(kernel: FusedKernel, operand: int) -> Step:
    assert kernel.gate is not None
    return Step("spread", index=operand, table=(("block", kernel.gate.block),))


def _names(kernel: FusedKernel, op: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.name for n in kernel.nodes if n.op == op))


def _anchor(kernel: FusedKernel, masked: bool) -> Step:
    anchor = kernel.anchor
    if isinstance(anchor, Conv):
        return Step("read", index=0)
    name, facts = _spatial(kernel)
    if masked:
        facts["mask"] = 1  # operand
    return Step(name, table=tuple(sorted(facts.items())))


def _spatial(kernel: FusedKernel) -> tuple[str, dict[str, Any]]:
    match kernel.anchor:
        case Pool() as pool:
            spec = kernel.tensor(pool.input)
            return "pool", {
                "kind": pool.kind,
                "window": pool.window,
                "stride": pool.stride,
                "padding": pool.padding,
                "dilation": pool.dilation,
                "count_include_pad": pool.count_include_pad,
                "size": (spec.h, spec.w),
            }
        case GlobalMean():
            return "mean", {}
        case Resize() as resize:
            spec = kernel.tensor(resize.input)
            return "resize", {
                "method": resize.method,
                "coordinate": resize.coordinate,
                "rounding": resize.rounding,
                "size": (spec.h, spec.w),
                "out": (kernel.h, kernel.w),
            }
        case Window() as window:
            spec = kernel.tensor(window.input)
            return "window", {
                "offset": window.offset,
                "stride": window.stride,
                "fill": window.fill,
                "size": (spec.h, spec.w, spec.c),
            }
    raise ValueError(type(kernel.anchor).__name__)


def _choice(store: Store, value: int, thresholds: tuple[float, ...]) -> Step:
    choice = store.choice
    assert choice is not None
    facts = {
        "pool": choice.pool,
        "shifts": choice.shifts,
        "threshold": thresholds[choice.threshold],
    }
    return Step("choose", (value,), table=tuple(sorted(facts.items())))


def to_json(programs: list[VectorProgram]) -> str:
    """Return vector programs as JSON."""
    rows = [
        [[s.op, s.args, s.value, s.limit, s.index, dict(s.table)] for s in program]
        for program in programs
    ]
    return json.dumps(rows)


def from_json(text: str) -> list[VectorProgram]:
    """Read what `to_json` wrote."""
    return [
        tuple(
            Step(
                op,
                tuple(args),
                value,
                limit,
                index,
                tuple(sorted((k, _frozen(v)) for k, v in table.items())),
            )
            for op, args, value, limit, index, table in program
        )
        for program in json.loads(text)
    ]


def _frozen(value: Any) -> Any:
    """Return lists as tuples: steps are compared and hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
