"""From a calibrated network to an artifact: phases, code generation, manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm import bops
from resq_tvm.artifact import Artifact, write_artifact
from resq_tvm.errors import CompileError
from resq_tvm.passes.frame import join, lower_frame
from resq_tvm.passes.lower import KernelRecord, Lowered
from resq_tvm.passes.pipeline import dump_to, generate_code, run_phases
from resq_tvm.passes.policy import is_dynamic
from resq_tvm.processing.config import ProcessingConfig
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.targets.preset import Target, get_target

STATE_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Compiled:
    """A built library with its constants and what the manifest says about it."""

    executable: Any
    params: dict[str, NDArray[Any]]
    info: dict[str, Any]
    lowered: Lowered


def compile(
    qnet: QuantizedNetwork,
    target: str | Target = "auto",
    *,
    output: str | Path | None = None,
    state_dtype: str = "float16",
    frame_program: bool = True,
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
        A preset's name, or ``"auto"`` for this machine's best.
    output : path, optional
        Where to write the artifact folder (``NAME.resq``); a temporary folder otherwise.
    state_dtype : str
        ``"float16"`` or ``"float32"``: how keyframe state is stored.
    frame_program : bool
        Give an artifact that chooses bits a third program, ``frame``: a frame on its own without
        state, for frames on which residuals do not pay. Other artifacts have none.
    processing : ProcessingConfig, optional
        Pre- and post-processing that goes into the manifest.
    dump : path, optional
        Folder for the TVMScript of every phase.
    progress : callable, optional
        Called with the name of each step as it begins.

    Raises
    ------
    CompileError
        If an option is wrong or the network cannot be compiled for the target.
    TargetError
        If the target is unknown.
    """
    compiled = build(
        qnet,
        target,
        state_dtype=state_dtype,
        frame_program=frame_program,
        dump=dump,
        progress=progress,
    )
    if progress:
        progress("write artifact")
    return write_artifact(compiled, output, processing=processing)


def build(
    qnet: QuantizedNetwork,
    target: str | Target = "auto",
    *,
    state_dtype: str = "float16",
    frame_program: bool = True,
    dump: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Compiled:
    """Compile without writing an artifact; parameters as of `compile`."""
    if state_dtype not in STATE_DTYPES:
        raise CompileError(
            f"state dtype {state_dtype!r} is unknown; use {' or '.join(STATE_DTYPES)}"
        )
    options = qnet.options
    recurrent = options.get("residual", "pairwise") == "recurrent"
    dynamic = is_dynamic(qnet.module["main"])
    if dynamic and recurrent:
        raise CompileError(
            f"scheme {qnet.scheme} chooses bits of differences to the keyframe, its residuals are "
            "recurrent; calibrate with residual='pairwise'"
        )
    preset = get_target(target) if isinstance(target, str) else target
    tell = progress or (lambda _step: None)
    observe = dump_to(Path(dump)) if dump is not None else None
    tell("partition, fuse, lower")
    lowered = run_phases(
        qnet.module,
        preset,
        state_dtype=state_dtype,
        recurrent=recurrent,
        observe=observe,
    )
    frame_params = None
    if frame_program and dynamic:
        joined = join(lowered, lower_frame(qnet.module, preset))
        lowered, frame_params = joined.lowered, joined.frame_params
    tell("generate code")
    executable = generate_code(lowered, preset)
    report = bops.count(qnet.module, qnet.period)
    inputs = _input_state(lowered)
    state = [
        {
            "name": f"state_{i}",
            "shape": list(shape),
            "dtype": dtype,
            "bytes": int(np.prod(shape)) * np.dtype(dtype).itemsize,
            "input": inputs.get(i),
        }
        for i, (shape, dtype) in enumerate(lowered.state_types)
    ]
    info = {
        "scheme": qnet.scheme,
        "period": qnet.period,
        "target": {"name": preset.name, "features": list(preset.features)},
        "inputs": [vars(t) for t in qnet.network.inputs],
        "outputs": [vars(t) for t in qnet.network.outputs],
        "state": state,
        "workspace": [vars(t) for t in lowered.workspace],
        "probe": "probe" in [g.name_hint for g in lowered.module.get_global_vars()],
        "thresholds": list(lowered.thresholds),
        "frame_params": frame_params,
        "layers": _layers(report, qnet.layers, lowered.kernels),
        "opaque": lowered.opaque,
        "bops": report.totals(),
        "options": {**options, "state_dtype": state_dtype},
    }
    return Compiled(executable, lowered.params, info, lowered)


def _input_state(lowered: Lowered) -> dict[int, int]:
    """Return which state tensors hold which of the keyframe's inputs (both by number)."""
    if not lowered.state_types:
        return {}
    function = lowered.fused["residual"]
    names = [p.name for p in function.params]
    count = int(function.attrs["num_input"])
    places = {name: i for i, name in enumerate(names[count:])}
    held = {places.get(f"{name}_key"): i for i, name in enumerate(names[:count])}
    return {place: i for place, i in held.items() if place is not None}


def _layers(
    report: Any, precisions: dict[str, str], kernels: dict[str, KernelRecord]
) -> list[dict[str, Any]]:
    """Return a manifest entry per linear layer: cost, bits, and the kernels that run it."""
    ran: dict[str, dict[str, dict[str, str]]] = {}
    for record in kernels.values():
        if record.layer is not None:
            entry = {"name": record.kernel.name, "decision": str(record.decision)}
            ran.setdefault(record.layer, {})[record.program] = entry
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
                "kernels": ran.get(layer.name, {}),
            }
        )
    return entries
