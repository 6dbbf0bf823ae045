"""What a residual frame takes on this machine, as a function of how much of each layer is active.

The residual program is compiled and timed twice, kernel by kernel: with every tile active, and
with kernels that look at what changed and find nothing. Between these the cost is linear.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact
from resq_tvm.bench import profile_kernels
from resq_tvm.compiler import compile as compile_network
from resq_tvm.errors import ConfigError, TargetError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.quantize.activity import Cost, Shares
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.scheme import code_limit
from resq_tvm.session import Session
from resq_tvm.targets.preset import Target, get_target
from resq_tvm.targets.toolchain import is_foreign

ROUNDS = 15
_DROP_ALL = 1e20  # a tau above every residual
_ENDLESS = 1 << 30  # a period

Frame = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class FrameProfile:
    """Milliseconds of a residual frame.

    Attributes
    ----------
    fixed : float
        Of a frame in which nothing is active: gates, and every kernel's look at what changed.
    layers : dict of str to float
        What a layer's kernel takes on top of that if all its tiles are active.
    others : float
        The same, of all kernels without a layer.
    """

    fixed: float
    layers: dict[str, float]
    others: float

    def cost(self, shares: Shares) -> float:
        """Return the expected milliseconds of a frame.

        Parameters
        ----------
        shares : mapping of str to float
            Layer → share of its output tiles that are active. Kernels without a layer are as
            active as layers are on average.
        """
        mean = sum(shares.values()) / len(shares) if shares else 0.0
        active = sum(ms * shares.get(layer, 1.0) for layer, ms in self.layers.items())
        return self.fixed + active + mean * self.others


def layer_cost(
    qnet: QuantizedNetwork,
    target: str | Target = "auto",
    *,
    state_dtype: str = "float16",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Cost:
    """Return a cost in milliseconds for `resq_tvm.fit_thresholds`.

    Parameters
    ----------
    qnet : QuantizedNetwork
        Calibrated with a pool of bits. Its thresholds and its tile budget do not matter.
    target : str or Target
        As for `resq_tvm.compile`; this machine must be able to run it.
    state_dtype : str
        ``"float16"`` or ``"float32"``.
    threads : int, optional
        Threads per frame; every available CPU by default.
    progress : callable, optional
        Called with the name of each step as it begins.

    Returns
    -------
    callable
        Layer → share of active tiles, to milliseconds.

    Raises
    ------
    ConfigError
        If the network has no pools of bits, or ``threads`` is out of range.
    TargetError
        If the target is unknown, or not for this machine.
    CompileError
        If the network cannot be compiled.
    """
    say = progress or (lambda _step: None)
    preset = get_target(target) if isinstance(target, str) else target
    if is_foreign(preset):
        raise TargetError(
            f"target {preset.name!r} is another architecture's: its kernels cannot be timed here; "
            "give a budget in work"
        )
    if preset.npu is not None:
        raise TargetError(
            f"target {preset.name!r} is simulated: its kernels cannot be timed here; give a budget "
            "in work"
        )
    extreme = all_or_nothing(qnet)
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        artifact = compile_network(
            extreme,
            preset,
            output=Path(folder) / "timed.resq",
            state_dtype=state_dtype,
            frame_program=False,
            progress=say,
        )
        say("time kernels")
        return measure(artifact, noise(qnet), threads).cost


def measure(artifact: Artifact, frames: tuple[Frame, Frame], threads: int | None) -> FrameProfile:
    """Time the residual program of an artifact of `all_or_nothing`.

    Parameters
    ----------
    artifact : Artifact
    frames : pair of tuple of ndarray
        Unlike frames, in the source model's layout.
    threads : int or None
        Threads per frame.
    """

    def session(threshold_scale: float) -> Session:
        return Session(
            artifact,
            period=_ENDLESS,
            copy=False,
            threads=threads,
            threshold_scale=threshold_scale,
            keyframes=KeyframePolicy(guard=False),
        )

    table = profile_kernels(session(0.0), list(frames), ROUNDS)
    active = [row for row in table if row["program"] == "residual"]
    idle, fixed = _idle(session(1.0), frames[0])
    layers: dict[str, float] = {}
    others = 0.0
    for row, (name, ms) in zip(active, idle, strict=True):
        assert row["name"] == name
        extra = max(row["ms"] - ms, 0.0)
        if row["layer"] is None:
            others += extra
        else:
            layers[row["layer"]] = layers.get(row["layer"], 0.0) + extra
    return FrameProfile(fixed, layers, others)


def _idle(session: Session, frame: Frame) -> tuple[list[tuple[str, float]], float]:
    """Return the kernels' times on a frame in which nothing is active, and the frame's."""
    changed = touched(frame)
    session(frame)
    session(changed)  # puts in order what the keyframe left
    times = []
    for _ in range(ROUNDS):
        session(changed)
        assert session.last is not None
        times.append(session.last.ms)
    runs = []
    for _ in range(ROUNDS):
        with session.observed() as calls:
            session(changed)
        runs.append(calls)
    kernels = [
        (same[0][0], float(np.median([ms for _, ms in same]))) for same in zip(*runs, strict=True)
    ]
    return kernels, float(np.median(times))


def touched(frame: Frame) -> Frame:
    """Return a frame that differs in one value per input: one that does not ends at the gate."""
    copies = tuple(x.copy() for x in frame)
    for x in copies:
        x.flat[x.size // 2] *= -1
    return copies


def all_or_nothing(qnet: QuantizedNetwork) -> QuantizedNetwork:
    """Return the network with open gates and choices that take the fewest bits of their pool.

    With thresholds scaled to 0 they take the most.
    """
    if qnet.dynamic is None:
        raise ConfigError(
            f"scheme {qnet.scheme!r} computes every tile of a residual frame, there is nothing to "
            "fit to a time; use a pool of bits such as W8A8->W8A{0,8}"
        )
    dynamic = {
        "choices": {name: {**c, "tau": _DROP_ALL} for name, c in qnet.dynamic["choices"].items()},
        "gates": {name: {**g, "threshold": 0.0} for name, g in qnet.dynamic["gates"].items()},
        "held": qnet.dynamic.get("held") or [],
    }
    main = qnet.module["main"].with_attr("resq.dynamic", json.dumps(dynamic))
    return replace(qnet, network=replace(qnet.network, module=tvm.IRModule({"main": main})))


def noise(qnet: QuantizedNetwork) -> tuple[Frame, Frame]:
    """Return two frames of noise over the range that the network was calibrated for."""
    rng = np.random.default_rng(0)
    scales = qnet.scales["keyframe"]
    names = [param.name for param in qnet.module["main"].params]
    ranges = [
        max(
            (
                scale * code_limit(int(point.rpartition(":")[2]))
                for point, scale in scales.items()
                if point.rpartition(":")[0] == name
            ),
            default=1.0,
        )
        for name in names
    ]

    def frame() -> Frame:
        return tuple(
            rng.uniform(-limit, limit, info.shape).astype(np.float32)
            for limit, info in zip(ranges, qnet.network.inputs, strict=True)
        )

    return frame(), frame()
