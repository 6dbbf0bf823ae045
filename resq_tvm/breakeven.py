"""Up to which share of changed input a residual frame pays.

A rectangle of the keyframe is replaced by noise, far above every gate, and the residual frame is
timed beside the keyframe and beside a frame without state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact
from resq_tvm.device import prepare_thread_pool, resolve_threads, use_threads
from resq_tvm.errors import ConfigError
from resq_tvm.programs import Programs

SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
_TO_NHWC = (0, 2, 3, 1)


@dataclass(frozen=True)
class Point:
    """A residual frame of which some share changed.

    ``share`` of the input was replaced, ``changed`` is what the probe says of it; ``tiles`` is the
    share of all kernels' tiles that were computed; times are medians in milliseconds, the probe
    included.
    """

    share: float
    changed: float
    tiles: float
    ms: float
    to_keyframe: float
    to_frame: float | None


@dataclass(frozen=True)
class BreakEven:
    """Residual frames against the share that changed, beside frames computed on their own.

    ``stops_paying_at`` is the share from which a residual frame takes longer than a frame without
    state (without that program: than a keyframe), interpolated; None if it always pays.
    """

    keyframe_ms: float
    frame_ms: float | None
    probe_ms: float
    points: list[Point]
    stops_paying_at: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**vars(self), "points": [vars(point) for point in self.points]}


def measure_break_even(
    artifact: Artifact,
    frame: NDArray[np.float32] | tuple[NDArray[np.float32], ...],
    *,
    threads: int | None = None,
    rounds: int = 10,
) -> BreakEven:
    """Time residual frames that differ from their keyframe in a rectangle.

    Parameters
    ----------
    artifact : Artifact
        Of a scheme that chooses bits.
    frame : ndarray or tuple of ndarray
        The keyframe, as a session takes it.
    threads : int, optional
        Threads per frame; every available CPU by default.
    rounds : int
        Each measures every program and every share once.

    Raises
    ------
    ConfigError
        If the artifact's residual frames do not depend on what changed.
    """
    programs = Programs(artifact)
    if not programs.is_sparse:
        raise ConfigError(
            f"scheme {artifact.manifest.scheme} computes every pixel of a residual frame; "
            "a break-even needs a scheme that chooses bits"
        )
    prepare_thread_pool()
    use_threads(resolve_threads(threads))
    arrays = frame if isinstance(frame, tuple) else (frame,)
    layouts = [entry.layout for entry in artifact.manifest.inputs]
    planes = [
        a.transpose(_TO_NHWC) if layout == "NCHW" else a
        for a, layout in zip(arrays, layouts, strict=True)
    ]
    inputs = [_tensors(planes, share) for share in SHARES]
    programs.prepare()
    own: dict[str, list[float]] = {"keyframe": [], "frame": [], "probe": []}
    times: list[list[float]] = [[] for _ in SHARES]
    changed, tiles = [0.0] * len(SHARES), [0] * len(SHARES)
    for _ in range(rounds + 1):
        own["keyframe"].append(_timed(lambda: programs.keyframe(inputs[0])))
        if programs.has_frame:
            own["frame"].append(_timed(lambda: programs.frame(inputs[0])))
        for i, tensors in enumerate(inputs):
            # Twice: the first also puts in order what the share before it left behind.
            programs.residual(tensors)
            start = time.perf_counter()
            changed[i] = programs.probe(tensors)
            own["probe"].append((time.perf_counter() - start) * 1e3)
            programs.residual(tensors)
            times[i].append((time.perf_counter() - start) * 1e3)
            assert programs.counts is not None
            tiles[i] = int(programs.counts[:, 0].sum())
    # The first round warms up.
    keyframe = float(np.median(own["keyframe"][1:]))
    alone = float(np.median(own["frame"][1:])) if programs.has_frame else None
    points = []
    for i, share in enumerate(SHARES):
        ms = float(np.median(times[i][1:]))
        part = tiles[i] / max(tiles[-1], 1)
        to_frame = None if alone is None else ms / alone
        points.append(Point(share, changed[i], part, ms, ms / keyframe, to_frame))
    return BreakEven(
        keyframe,
        alone,
        float(np.median(own["probe"][len(SHARES) :])),
        points,
        crossing(
            [p.changed for p in points],
            [p.ms for p in points],
            keyframe if alone is None else alone,
        ),
    )


def crossing(shares: Sequence[float], times: Sequence[float], level: float) -> float | None:
    """Return the first share at which the interpolated time exceeds a level, None if never."""
    if times[0] > level:
        return shares[0]
    for i in range(1, len(times)):
        if times[i] > level:
            part = (level - times[i - 1]) / (times[i] - times[i - 1])
            return shares[i - 1] + part * (shares[i] - shares[i - 1])
    return None


def changed_frame(plane: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Return an NHWC frame with a rectangle in its middle, that share of it, made of noise.

    The noise spans the frame's range of values; arrays of other ranks are returned as they are.
    """
    out = np.array(plane, np.float32, order="C")
    if out.ndim != 4 or share == 0:
        return out
    _, height, width, _ = out.shape
    h = max(round(height * share**0.5), 1)
    w = max(round(width * share**0.5), 1)
    top, left = (height - h) // 2, (width - w) // 2
    part = out[:, top : top + h, left : left + w]
    low, high = float(out.min()), max(float(out.max()), float(out.min()) + 1)
    rng = np.random.default_rng(0)
    part[...] = rng.uniform(low, high, part.shape).astype(np.float32)
    return out


def _tensors(planes: list[NDArray[np.float32]], share: float) -> list[Any]:
    import tvm

    return [tvm.runtime.tensor(changed_frame(plane, share)) for plane in planes]


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3
