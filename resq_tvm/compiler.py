"""From a calibrated network to an artifact: phases, code generation, manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm import bops
from resq_tvm.artifact import Artifact, write_artifact
from resq_tvm.errors import CompileError
from resq_tvm.npu.arranged import finder
from resq_tvm.npu.program import place_type
from resq_tvm.passes.frame import join, lower_frame
from resq_tvm.passes.held import held_outputs
from resq_tvm.passes.lower import Lowered, input_state
from resq_tvm.passes.npu.arrangement import Arrangement
from resq_tvm.passes.npu.lower import LoweredNpu
from resq_tvm.passes.pipeline import Observer, dump_to, generate_code, run_phases
from resq_tvm.passes.policy import is_dynamic
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.processing.config import ProcessingConfig
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.schedules.choice import CASCADE, Decider, fallbacks, preferring
from resq_tvm.schedules.signature import signature
from resq_tvm.schedules.space import tunable
from resq_tvm.schedules.tuning.records import decider
from resq_tvm.schedules.tuning.tasks import describe
from resq_tvm.targets.preset import Target, get_target

STATE_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Compiled:
    """A built library with its constants and what the manifest says about it.

    ``kernels`` is what tuning needs to know of it (`tunable_kernels`). ``executable`` is None for
    an NPU that does without its host.
    """

    executable: Any
    params: dict[str, NDArray[Any]]
    info: dict[str, Any]
    lowered: Lowered
    kernels: dict[str, Any]
    target: Target


def compile(
    qnet: QuantizedNetwork,
    target: str | Target = "auto",
    *,
    output: str | Path | None = None,
    state_dtype: str = "float16",
    state_memory: str = "auto",
    cascades: str = "auto",
    frame_program: bool = True,
    database: str | PathLike[str] = "shipped",
    device: str | None = None,
    tuned_threads: int = 1,
    arm_kernels: str | None = None,
    strict: bool = False,
    processing: ProcessingConfig | None = None,
    dump: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Compile a calibrated network for a target.

    Parameters
    ----------
    qnet : QuantizedNetwork
        What `resq_tvm.calibrate` returned.
    target : str or Target
        A preset's name, ``"auto"`` for this machine's best, or an NPU's .json file.
    output : path, optional
        Where to write the artifact folder (``NAME.resq``); a temporary folder otherwise.
    state_dtype : str
        ``"float16"`` or ``"float32"``: how keyframe state is stored.
    state_memory : str
        Of an NPU: ``"sram"`` or ``"dram"`` keeps state there, ``"auto"`` leaves it to the planner.
    cascades : str
        Of an NPU: whether kernels take turns band by band of rows, so that tensors between them
        need not leave the chip. ``"on"``, ``"off"``; ``"auto"``: in the programs that the cycle
        model then finds faster; ``"search"``: with several plans, which takes longer. With
        ``"auto"``, a network that ``database`` has an arrangement of is compiled as that says.
    frame_program : bool
        Give an artifact that chooses bits a third program, ``frame``: a frame on its own without
        state, for frames on which residuals do not pay. Other artifacts have none, nor has an
        NPU's.
    database : str or path
        Measured schedules: a work directory of ``resq-tvm tune``, ``"shipped"`` (those of this
        package, where it has some of this machine) or ``"none"``. Kernels without a record get the
        heuristic's schedule.
    device : str, optional
        What the artifact will run on, as tuning named it; this machine's processor by default.
    tuned_threads : int
        Threads per kernel of the measurements.
    arm_kernels : str, optional
        On ARM, the scheme of multiplying that convolutions use wherever their sums fit
        (docs/kernels.md), rather than the one that pays on the core.
    strict : bool
        Refuse kernels that were not tuned or do without the target's dot product.
    processing : ProcessingConfig, optional
        Pre- and post-processing that goes into the manifest.
    dump : path, optional
        Folder for the TVMScript of every phase.
    progress : callable, optional
        Called with the name of each step as it begins.

    Raises
    ------
    CompileError
        If an option is wrong, the network cannot be compiled for the target, or ``strict`` finds
        a fallback.
    ConfigError
        If ``database`` has no records of the target, the device and the number of threads.
    TargetError
        If the target is unknown.
    """
    preset = get_target(target) if isinstance(target, str) else target
    compiled = build(
        qnet,
        preset,
        state_dtype=state_dtype,
        state_memory=state_memory,
        cascades=cascades,
        frame_program=frame_program,
        database=database,
        device=device,
        tuned_threads=tuned_threads,
        arm_kernels=arm_kernels,
        dump=dump,
        progress=progress,
    )
    if strict and (found := fallbacks(compiled.info["kernels"], preset.isa)):
        raise CompileError(
            f"{len(found)} kernel(s) fell back: {'; '.join(found)}; tune for this device, or "
            "compile without strict"
        )
    if progress:
        progress("write artifact")
    return write_artifact(compiled, output, processing=processing)


def build(
    qnet: QuantizedNetwork,
    target: str | Target = "auto",
    *,
    state_dtype: str = "float16",
    state_memory: str = "auto",
    cascades: str = "auto",
    frame_program: bool = True,
    database: str | PathLike[str] = "shipped",
    device: str | None = None,
    tuned_threads: int = 1,
    arm_kernels: str | None = None,
    dump: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Compiled:
    """Compile without writing an artifact; parameters as of `compile`."""
    preset = get_target(target) if isinstance(target, str) else target
    tell = progress or (lambda _step: None)
    decide = decider(preset, database, device=device, threads=tuned_threads)
    if arm_kernels is not None:
        decide = preferring(decide, preset, arm_kernels)
    tell("partition, fuse, lower")
    lowered, frame_params = lower_network(
        qnet,
        preset,
        state_dtype=state_dtype,
        state_memory=state_memory,
        cascades=cascades,
        frame_program=frame_program,
        decide=decide,
        find=finder(preset, database),
        observe=dump_to(Path(dump)) if dump is not None else None,
    )
    tell("generate code")
    executable = generate_code(lowered, preset)
    features = [] if executable is None else list(preset.features)
    report = bops.count(qnet.module, qnet.period)
    places = input_state(lowered.fused) if lowered.state_types else {}
    inputs = {place: number for number, place in places.items()}
    programs = [g.name_hint for g in lowered.module.get_global_vars()]
    state = [
        {
            "name": f"state_{i}",
            "shape": list(shape),
            "dtype": dtype,
            "bytes": int(np.prod(shape)) * np.dtype(dtype).itemsize,
            "input": inputs.get(i),
        }
        for i, (shape, dtype) in enumerate(_state_types(lowered))
    ]
    info = {
        "scheme": qnet.scheme,
        "period": qnet.period,
        "target": {"name": preset.name, "features": features},
        "inputs": [vars(t) for t in qnet.network.inputs],
        "outputs": [vars(t) for t in qnet.network.outputs],
        "state": state,
        "workspace": [vars(t) for t in lowered.workspace],
        **{name: name in programs for name in ("probe", "note")},
        "thresholds": list(lowered.thresholds),
        "frame_params": frame_params,
        "layers": _layers(report, qnet.layers),
        "kernels": [_kernel(r) for r in lowered.kernels.values()],
        "opaque": lowered.opaque,
        "bops": report.totals(),
        "options": {**qnet.options, "state_dtype": state_dtype}
        | ({"cascades": cascades} if preset.npu is not None else {})
        | _held(qnet),
    }
    kernels = tunable_kernels(lowered, preset, qnet.period)
    return Compiled(executable, lowered.params, info, lowered, kernels, preset)


def lower_network(
    qnet: QuantizedNetwork,
    target: Target,
    *,
    state_dtype: str = "float16",
    state_memory: str = "auto",
    cascades: str = "auto",
    frame_program: bool = True,
    decide: Decider | None = None,
    find: Callable[[str], Arrangement | None] | None = None,
    observe: Observer | None = None,
) -> tuple[Lowered, tuple[str, ...] | None]:
    """Lower all programs of a network.

    Parameters
    ----------
    qnet : QuantizedNetwork
    target : Target
    state_dtype, state_memory, cascades, frame_program
        As of `compile`.
    decide : callable, optional
        Takes the decision about every kernel; the target's rules by default.
    find : callable, optional
        Of an NPU: tells how tuning arranged a network (`resq_tvm.npu.arranged.finder`).
    observe : callable, optional
        Called with (phase, module) after every phase.

    Returns
    -------
    lowered : Lowered
    frame_params : tuple of str or None
        What the program ``frame`` takes, if there is one.

    Raises
    ------
    CompileError
        If an option is wrong or the network cannot be compiled for the target.
    """
    if state_dtype not in STATE_DTYPES:
        raise CompileError(
            f"state dtype {state_dtype!r} is unknown; use {' or '.join(STATE_DTYPES)}"
        )
    recurrent = qnet.options.get("residual", "pairwise") == "recurrent"
    dynamic = is_dynamic(qnet.module["main"])
    if dynamic and recurrent:
        raise CompileError(
            f"scheme {qnet.scheme} chooses bits of differences to the keyframe, its residuals are "
            "recurrent; calibrate with residual='pairwise'"
        )
    lowered = run_phases(
        qnet.module,
        target,
        state_dtype=state_dtype,
        recurrent=recurrent,
        observe=observe,
        decide=decide,
        state_memory=state_memory,
        cascades=cascades,
        find=find,
    )
    if not frame_program or not dynamic or target.npu is not None:
        return lowered, None
    joined = join(lowered, lower_frame(qnet.module, target, decide))
    return joined.lowered, joined.frame_params


def tunable_kernels(lowered: Lowered, target: Target, period: int) -> dict[str, Any]:
    """Return what tuning needs to know of a network's kernels, as JSON values.

    Parameters
    ----------
    lowered : Lowered
    target : Target
    period : int
        Of keyframes.

    Returns
    -------
    dict
        ``footprint``: bytes that a frame touches and the next one touches again, which are the
        state and the constants of one program. ``kernels``: a list of ``name``, ``signature``, and
        ``runs`` per period of those that have more than one schedule.
    """
    records = list(lowered.kernels.values())
    programs = {r.program for r in records}
    state = sum(int(np.prod(s)) * np.dtype(d).itemsize for s, d in lowered.state_types)
    constants = sum(a.nbytes for a in lowered.params.values()) // max(1, len(programs))
    kernels = [
        {
            "name": r.kernel.name,
            "signature": signature(r.kernel),
            "runs": max(1, period - 1) if r.program == "residual" else 1,
        }
        for r in records
        if r.origin != CASCADE and tunable(r.kernel, target)
    ]
    return {"footprint": state + constants, "kernels": kernels}


def _held(qnet: QuantizedNetwork) -> dict[str, str]:
    """Return which outputs residual frames hold, if any, as an option to show."""
    outputs = qnet.network.outputs
    names = [outputs[n].name for n in held_outputs(qnet.module["main"])]
    return {"held": ", ".join(names)} if names else {}


def _state_types(lowered: Lowered) -> list[tuple[tuple[int, ...], str]]:
    """Return shape and dtype of the state as programs take and return it."""
    if not isinstance(lowered, LoweredNpu):
        return lowered.state_types
    return [place_type(place) for place in lowered.stream.programs["keyframe"].state]


def _kernel(record: KernelRecord) -> dict[str, str | None]:
    """Return a manifest entry per kernel: what it is, and who decided about its schedule."""
    return {
        "name": record.kernel.name,
        "program": record.program,
        "layer": record.layer,
        "shape": describe(record.kernel),
        "decision": str(record.decision),
        "method": record.decision.method,
        "origin": record.origin,
    }


def _layers(report: Any, precisions: dict[str, str]) -> list[dict[str, Any]]:
    """Return a manifest entry per linear layer: cost and bits."""
    entries = []
    for layer in report.layers:
        text = precisions[layer.name]
        key, _, residual = text.partition("->")
        entries.append(
            {
                "name": layer.name,
                "op": layer.op,
                "macs": layer.macs,
                "key_bits": key,
                "residual_bits": residual or (key if key == "float" else None),
            }
        )
    return entries
