"""What the runtime's tests share: networks, frames, and what Python's session makes of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from resq_tvm import compiler
from resq_tvm.artifact import Artifact
from resq_tvm.costs import Costs
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.session import Session
from tests.dynamic import dynamic, qnet, small_network
from tests.graphs import annotated, random_network
from tests.resq_tvm import tiny_artifact

Frame = NDArray[np.float32]

SOURCES = Path(__file__).parent / "programs"  # of the tests, in C++ and C


def static(scheme: str, residual: str = "pairwise") -> QuantizedNetwork:
    network = qnet(annotated(small_network(), scheme), scheme)
    options = json.dumps({**network.options, "residual": residual})
    main = network.module["main"].with_attr("resq.options", options)
    module = tvm.IRModule({"main": main})
    return QuantizedNetwork(replace(network.network, module=module), scheme)


def write(kind: str, folder: Path, target: str = "auto") -> Artifact:
    """Write a network's artifact: layouts and copies, then each kind of scheme."""
    if kind == "planes":
        return tiny_artifact.write(folder)
    network = {
        "frame": lambda: static("W8A8"),
        "pairwise": lambda: static("W8A8->W4A4"),
        "precise": lambda: static("W8A16->W8A8"),
        "recurrent": lambda: static("W8A8->W8A8", "recurrent"),
        "dynamic": lambda: dynamic(small_network()),
        "outputs": lambda: dynamic(random_network(9)),  # three; and tiles to be written anew
    }[kind]()
    return compiler.compile(network, target, output=folder)


KINDS = ("planes", "frame", "pairwise", "precise", "recurrent", "dynamic", "outputs")


def clip(shape: Sequence[int], count: int, seed: int = 0) -> list[Frame]:
    """Return a still picture with something else in one corner now and then.

    Every four frames something comes to stay, elsewhere. Of such four the third is as the first.
    """
    rng = np.random.default_rng(seed)
    still = rng.standard_normal(tuple(shape)).astype(np.float32)
    frames = []
    for n in range(count):
        frame = still.copy()
        frame[..., 4:, 4:, :] += np.float32(0.4 * (n // 4))
        if n % 2:
            frame[..., :3, :4, :] += np.float32(0.3 + 0.05 * n)
        frames.append(frame)
    return frames


@dataclass(frozen=True)
class Played:
    """Outputs, frame after frame, and why: (kind, reason, index)."""

    outputs: bytes
    frames: list[tuple[str, str, int]]


PLAIN = KeyframePolicy(guard=False)


def in_python(
    artifact: Artifact,
    frames: Sequence[Frame],
    period: int,
    threshold_scale: float = 1.0,
    policy: KeyframePolicy = PLAIN,
    costs: Costs | None = None,
) -> Played:
    """Return what Python's session makes of frames, by default without the guard."""
    session = Session(
        artifact,
        period=period,
        threads=1,
        threshold_scale=threshold_scale,
        keyframes=policy,
        costs=costs,
    )
    outputs, infos = b"", []
    for frame in frames:
        outputs += bytes_of(session(frame))
        last = session.last
        assert last is not None
        infos.append((last.kind, last.reason or "", last.index))
    return Played(outputs, infos)


def bytes_of(arrays: Any) -> bytes:
    """Return an array's contents, or those of several, one after the other."""
    if isinstance(arrays, np.ndarray):
        return np.ascontiguousarray(arrays).tobytes()
    return b"".join(bytes_of(array) for array in arrays)


def call(
    command: Sequence[object], given: bytes = b"", *, code: int = 0
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [str(word) for word in command], input=given, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def resq_run(
    program: Sequence[object], artifact: Path, frames: Sequence[NDArray[Any]], *options: object
) -> Played:
    """Play frames in ``resq-run``, by default without the guard.

    ``program`` may start it in an emulator.
    """
    words = options if "--costs" in options else ("--no-guard", *options)
    done = call([*program, artifact, "--threads", 1, "--times", *words], bytes_of(frames))
    lines = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert all(line["ms"] > 0 for line in lines)
    return Played(done.stdout, [(li["kind"], li["reason"] or "", li["frame"]) for li in lines])
