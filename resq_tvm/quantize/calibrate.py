"""Calibrate a network: give its layers their precision and fit every activation quantizer.

The float network runs over the clips; keyframe quantizers see the values of all frames (any frame
may become a keyframe), residual quantizers the differences to the keyframe (or to the previous
frame). Memory stays bounded:
quantizers are fitted in groups, the network runs once per group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from resq_tvm.errors import CalibrationError, ConfigError
from resq_tvm.network import Network
from resq_tvm.passes.annotate import Annotate, resolve_layers
from resq_tvm.passes.graph import Graph, concat_pieces, shape_of
from resq_tvm.passes.policy import BLOCK, REACH, choice_name
from resq_tvm.passes.quantizers import QuantPoint, quant_points
from resq_tvm.passes.weights import CODES, layer_codes
from resq_tvm.quantize.noise import residual_noise
from resq_tvm.quantize.precise import with_precise_layers
from resq_tvm.quantize.qnet import QuantizedNetwork, check_held_outputs
from resq_tvm.quantize.range_search import LayerProbe, fit_scale, fit_shifts
from resq_tvm.quantize.rounding import round_weights
from resq_tvm.quantize.samples import Clip, FrameGroups, Store, by_size, collect, read_groups
from resq_tvm.scheme import PrecisionPlan, Scheme

PROGRAMS = ("keyframe", "residual")
TAU = 3e-4  # the paper's
GRANULARITIES = ("channel", "tensor")
RESIDUALS = ("pairwise", "recurrent")
ROUNDINGS = ("gptq", "nearest")

_POINT_BYTES = 512 << 20  # samples and exact outputs of one quantizer
_GROUP_BYTES = 1 << 30  # samples of the quantizers that one run over the clips serves


def calibrate(
    net: Network,
    clips: Iterable[Clip],
    scheme: str | Scheme,
    *,
    period: int = 4,
    overrides: Mapping[str, str] | None = None,
    first_last: str | None = None,
    samples: int = 64,
    candidates: int = 20,
    granularity: str = "channel",
    residual: str = "pairwise",
    tau: float = TAU,
    rounding: str = "gptq",
    precise: float = 0.0,
    held: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> QuantizedNetwork:
    """Fit the quantizers of a network to clips (post-training quantization).

    Parameters
    ----------
    net : Network
        A loaded float network.
    clips : iterable of clips
        A clip is an iterable of consecutive frames; a frame is a float array in the source's
        layout with batch 1 (a tuple of arrays for several inputs), preprocessed.
    scheme : str or Scheme
        ``"W8A8->W4A4"``, or one precision for frame quantization.
    period : int
        A keyframe every ``period`` frames.
    overrides : mapping of str to str, optional
        Shell pattern over layer names → scheme or ``"float"``.
    first_last : str, optional
        Scheme (or ``"float"``) of the first and last layers.
    samples : int
        Frames that a quantizer sees at most (the paper's c).
    candidates : int
        Candidate ranges of the search (the paper's r).
    granularity : str
        ``"channel"`` or ``"tensor"``: weight scales.
    residual : str
        ``"pairwise"`` (against the keyframe) or ``"recurrent"`` (against the previous frame).
    tau : float
        Threshold of the policy (eq. 10) where the scheme has pools of bits; the paper's by default.
        `resq_tvm.fit_thresholds` fits thresholds to a budget.
    rounding : str
        ``"gptq"``: the weights of an output make up for each other's rounding errors
        (`resq_tvm.quantize.rounding`); ``"nearest"``.
    precise : float
        Share of the multiply-accumulates that keyframes may do twice, for inputs of 16 bits: the
        layers with the most rounding noise for it get them (`resq_tvm.quantize.precise`).
    held : sequence of str
        Outputs that are computed on keyframes alone (`QuantizedNetwork.with_held_outputs`); what
        only they depend on gets no 16 bits.
    progress : callable, optional
        Called with one line as each quantizer is done.

    Returns
    -------
    QuantizedNetwork

    Raises
    ------
    SchemeError
        If the scheme or an override is malformed.
    CalibrationError
        If the frames do not fit the network or are too few.
    ConfigError
        If an option holds a wrong value.
    """
    _check_options(period, samples, candidates, granularity, residual, tau, rounding)
    _check_share(precise)
    plan = PrecisionPlan(
        Scheme.parse(scheme) if isinstance(scheme, str) else scheme, overrides or {}, first_last
    )
    if plan.scheme.residual is not None and period == 1:
        raise CalibrationError(
            f"scheme {str(plan.scheme)!r} at period 1 has no residual frames; "
            "use a period of at least 2 or a scheme without ->"
        )
    layers = resolve_layers(net.module["main"], plan)  # a pass would hide the type of its errors
    dynamic = any(text != "float" and Scheme.parse(text).dynamic for text in layers.values())
    if dynamic and residual != "pairwise":
        raise ConfigError(
            f"residual {residual!r} does not go with scheme {str(plan.scheme)!r}: bits are chosen "
            "for residuals to the keyframe; use pairwise"
        )
    known = [output.name for output in net.outputs]
    if held:
        check_held_outputs(held, known, str(plan.scheme), dynamic)
    annotate: Any = Annotate(plan)
    module = annotate(net.module)
    main = module["main"]
    frames = read_groups(net, clips, 1 if plan.scheme.residual is None else period, samples)
    say = progress or (lambda _line: None)
    if rounding == "gptq":
        codes = round_weights(main, layers, frames, granularity, say)
        main = main.with_attr(CODES, {name: tvm.runtime.tensor(c) for name, c in codes.items()})
    if precise:
        fitter = _Fitter(main, frames, samples, candidates, granularity, False, PROGRAMS[:1])
        aside = [n for n, name in enumerate(known) if name in held]
        main = with_precise_layers(main, fitter.run(say)["keyframe"], frames, precise, say, aside)
    fitter = _Fitter(main, frames, samples, candidates, granularity, residual == "recurrent")
    scales = fitter.run(say)
    options = {"granularity": granularity, "residual": residual, "period": period}
    main = main.with_attr("resq.scales", json.dumps(scales))
    if dynamic:
        policy = {
            "choices": {
                name: {"shifts": list(shifts), "tau": tau} for name, shifts in fitter.shifts.items()
            },
            "gates": _gates(main, frames),
        }
        main = main.with_attr("resq.dynamic", json.dumps(policy))
    module["main"] = main.with_attr("resq.options", json.dumps(options))
    qnet = QuantizedNetwork(replace(net, module=module), str(plan.scheme))
    return qnet.with_held_outputs(held) if held else qnet


def _gates(main: Any, frames: FrameGroups) -> dict[str, dict[str, Any]]:
    """Return a gate per image that is fed: open to every difference until one is fitted."""
    gates = {}
    for index, param in enumerate(main.params):
        if len(shape_of(param)) != 4:
            continue
        noise, extent = residual_noise(frames, index)
        # A quarter of the noise, but no finer than float16 state of that magnitude can tell.
        scale = float(np.float32(max(noise / 4, extent / 2048, 1e-6)))
        gates[param.name] = {
            "scale": scale,
            "noise": noise,
            "threshold": 0.0,
            "block": BLOCK,
            "reach": REACH,
        }
    return gates


@dataclass(frozen=True)
class _Task:
    """One quantizer to fit, and which of its program's frames it sees."""

    program: str
    point: QuantPoint
    chosen: frozenset[int]
    sample_bytes: int


class _Fitter:
    """Fits all quantizers of an annotated ``main``."""

    def __init__(
        self,
        main: Any,
        frames: FrameGroups,
        samples: int,
        candidates: int,
        granularity: str,
        recurrent: bool,
        programs: Sequence[str] = PROGRAMS,
    ) -> None:
        self.main = main
        self.programs = programs
        self.frames = frames
        self.samples = samples
        self.candidates = candidates
        self.granularity = granularity
        self.recurrent = recurrent
        graph = Graph.of(main)
        self.calls = {var.name: call for var, call in graph.layers()}
        self.layers: dict[str, str] = json.loads(str(main.attrs["resq.layers"]))
        definitions = [*graph.func.params, *(var for var, _ in graph.bindings)]
        self.order = {var.name: n for n, var in enumerate(definitions)}
        self.variables = {var.name: var for var in definitions}
        read = {call.args[0].name: call.args[0] for call in self.calls.values()}
        self.producers = graph.producers
        self.shifts: dict[str, tuple[int, ...]] = {}
        self.size = {name: int(np.prod(shape_of(var))) * 4 for name, var in read.items()}

    def run(self, progress: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """Return program → quantizer → scale."""
        scales: dict[str, dict[str, float]] = {program: {} for program in PROGRAMS}
        tasks = self._tasks()
        done = 0
        for group in by_size(tasks, lambda task: task.sample_bytes, _GROUP_BYTES):
            store = collect(self.main, self.frames, _wanted(group), self.recurrent)
            for task in group:
                scales[task.program][task.point.name] = self._fit(task, store)
                done += 1
                progress(f"calibrate {done}/{len(tasks)} {task.program} {task.point.name}")
        return scales

    def _tasks(self) -> list[_Task]:
        tasks = []
        counts = {"keyframe": self.frames.count, "residual": self.frames.residuals}
        for program in self.programs:
            count = counts[program]
            for point in quant_points(self.main, self.layers, program):
                inputs = sum(self.size[value] for value in set(point.reads))
                outputs = sum(
                    int(np.prod(shape_of(self.calls[layer]))) * 4 for layer in point.layers
                )
                fitting = max(1, min(count, self.samples, _POINT_BYTES // (inputs + outputs)))
                chosen = np.linspace(0, count - 1, fitting).round().astype(int)
                tasks.append(_Task(program, point, frozenset(chosen.tolist()), inputs * fitting))
        # The two quantizers of a value side by side: one run over the clips serves both.
        return sorted(tasks, key=lambda task: self.order[task.point.reads[0]])

    def _fit(self, task: _Task, store: Store) -> float:
        point = task.point
        probes = []
        for layer in point.layers:
            scheme = Scheme.parse(self.layers[layer])
            bits = scheme.key if task.program == "keyframe" else scheme.residual
            assert bits is not None  # quant_points lists quantized layers only
            call = self.calls[layer]
            codes = layer_codes(self.main, layer, call, bits.weight, self.granularity)
            probes.append(LayerProbe(call, *codes))
        samples = {
            value: [store[task.program, value][n] for n in sorted(task.chosen)]
            for value in set(point.reads)
        }
        # Where nothing moves in the clips, residuals are expected within the value's own range.
        fallback = max(
            (
                float(x.abs().max())
                for value in set(point.reads)
                for x in store.get(("keyframe", value), {}).values()
            ),
            default=0.0,
        )
        scale = fit_scale(point, probes, samples, self.candidates, fallback).scale
        if point.pool:
            shifts = fit_shifts(point, probes, samples, scale)
            for value in point.values:
                for piece in concat_pieces(self.variables[value], self.producers):
                    self.shifts[choice_name(piece.name, point.pool)] = shifts
        return scale


def _check_share(precise: float) -> None:
    if not 0 <= precise <= 1:
        raise ConfigError(f"precise {precise} is out of range; use a share of 0 to 1")


def _wanted(group: list[_Task]) -> dict[str, dict[str, frozenset[int]]]:
    wanted: dict[str, dict[str, frozenset[int]]] = {program: {} for program in PROGRAMS}
    for task in group:
        for value in task.point.reads:
            before = wanted[task.program].get(value, frozenset())
            wanted[task.program][value] = before | task.chosen
    return wanted


def _check_options(
    period: int,
    samples: int,
    candidates: int,
    granularity: str,
    residual: str,
    tau: float,
    rounding: str,
) -> None:
    for name, number in (("period", period), ("samples", samples), ("candidates", candidates)):
        if number < 1:
            raise ConfigError(f"{name} is {number}; use at least 1")
    if not 0 <= tau < float("inf"):
        raise ConfigError(f"tau {tau} is out of range; use 0 or more")
    for name, text, known in (
        ("granularity", granularity, GRANULARITIES),
        ("residual", residual, RESIDUALS),
        ("rounding", rounding, ROUNDINGS),
    ):
        if text not in known:
            raise ConfigError(f"{name} {text!r} is unknown; use {' or '.join(known)}")
