"""Measure an artifact on a board behind a TVM RPC tracker.

The artifact, frames and a small library are sent; the library plays the frames with the C++ runtime
in the process of the board's RPC server, and only times come back. So nothing crosses the network
while the clock runs, and the state of a stream stays on the board.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from resq_tvm.artifact_files import verify_files
from resq_tvm.bench import RESIDUALS_PER_KEYFRAME, BenchReport, Latency, prepare_frames
from resq_tvm.edge.build import compile_program, source_digest, write_runtime
from resq_tvm.errors import ConfigError, TargetError
from resq_tvm.files import cache_folder
from resq_tvm.manifest import LIBRARY_NAME, MANIFEST_NAME, PARAMS_NAME
from resq_tvm.schedules.tuning.rpc import RpcAddress, last_line
from resq_tvm.simulate import frame_bytes
from resq_tvm.targets.preset import get_target
from resq_tvm.video.clip import Clip

_FUNCTION = "resq_board_bench"
_LIBRARY = "resq_board_bench.so"
_FRAMES = "frames.f32"
_FILES = (MANIFEST_NAME, LIBRARY_NAME, PARAMS_NAME)
_CORES = re.compile(r"fast|slow|free|\d{1,4}(,\d{1,4})*")
COOL_DOWN_S = 0.5


def benchmark_on_board(
    artifact: str | PathLike[str],
    address: RpcAddress,
    clip: Clip | None = None,
    *,
    threads: int | None = None,
    period: int | None = None,
    repeats: int = 30,
    warmup: int = 3,
    cool_down_s: float = COOL_DOWN_S,
    cores: str = "fast",
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measure an artifact's keyframes and residual frames on a board.

    Kernels are not measured one by one, nor is the break-even of schemes that choose bits. Before
    the clock runs, the board plays the first frames twice: outputs must be finite and the same.

    Parameters
    ----------
    artifact : path-like
    address : RpcAddress
        Of the tracker, and the boards' key there; one free board is held for the measurement.
        Where all are held by others, this waits.
    clip : Clip, optional
        Where frames come from; generated frames by default.
    threads : int, optional
        Threads per frame; every CPU of the board, or of ``cores``, by default.
    period : int, optional
        Keyframe period of the amortised figures; the artifact's by default.
    repeats, warmup : int
        As of `resq_tvm.benchmark`.
    cool_down_s : float
        Seconds without work after every ten rounds; the warm-up then runs again.
    cores : str
        The CPUs that threads are pinned to, one each: ``"fast"`` or ``"slow"``, those of the
        highest or lowest clocks; numbers such as ``"4,5"``; ``"free"`` pins none.
    progress : callable, optional
        Called with one line before each step.

    Returns
    -------
    BenchReport
        ``device`` describes the board: beside the usual facts ``board`` (the key), ``tracker``,
        ``pinned`` (the CPUs), ``clock_mhz`` and ``highest_clock_mhz`` (of the first of these, at
        the end and at most; 0 where the board does not tell).

    Raises
    ------
    ArtifactError
        If the artifact is damaged, or built with another TVM.
    TuningError
        If the tracker does not answer or has no such board.
    TargetError
        If the board refuses the artifact, is lost, or its cross compiler is absent; if outputs
        are not finite or not repeatable.
    ConfigError
        If a count or ``cores`` is out of range.
    """
    folder = Path(artifact)
    manifest = verify_files(folder)
    period = manifest.period if period is None else period
    if min(period, repeats, 1 if threads is None else threads) < 1 or warmup < 0:
        raise ConfigError(
            f"period {period}, threads {threads}, repeats {repeats}, warm-up {warmup}: use at "
            "least 1, 1, 1 and 0"
        )
    if not (math.isfinite(cool_down_s) and cool_down_s >= 0):
        raise ConfigError(f"cool-down {cool_down_s} is out of range; use seconds, at least 0")
    if not _CORES.fullmatch(cores):
        raise ConfigError(f"cores {cores!r} are unknown; use fast, slow, free, or numbers like 4,5")
    tell = progress or (lambda _step: None)
    address.boards()
    library = bench_library(get_target(manifest.target.name).architecture, tell)
    frames = prepare_frames(manifest, clip)
    followers = min(period - 1, RESIDUALS_PER_KEYFRAME) if manifest.has_residual else 0
    sent = {name: (folder / name).read_bytes() for name in _FILES}
    sent[_FRAMES] = b"".join(frame_bytes(frame, manifest) for frame in frames)
    sent[_LIBRARY] = library.read_bytes()
    plan = (threads or 0, followers, warmup, repeats, float(cool_down_s), cores)
    try:
        found = _play(address, sent, plan, manifest.target.name, tell)
    except Exception as error:  # TVM raises several types, the board's errors among them
        raise TargetError(
            f"board {address.key!r} at {address.host}:{address.port} did not measure "
            f"{str(folder)!r}: {last_line(error)}"
        ) from None
    times = {name: found.pop(f"{name}_ms") for name in ("keyframe", "residual")}
    device = {
        **found,
        "cpu": found["cpu"] or address.key,
        "board": address.key,
        "tracker": f"{address.host}:{address.port}",
    }
    return BenchReport(
        manifest,
        period,
        Latency.of(times["keyframe"]),
        Latency.of(times["residual"]) if times["residual"] else None,
        [],
        device,
    )


def _play(
    address: RpcAddress,
    sent: dict[str, bytes],
    plan: tuple[object, ...],
    target: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Hold a board, send the files and let it measure; return what it found."""
    tell(f"ask for board {address.key}")
    remote = address.request()
    tell("send the artifact")
    for name, contents in sent.items():
        remote.upload(bytearray(contents), name)
    place = remote.get_function("tvm.rpc.server.workpath")
    try:
        measure = remote.load_module(_LIBRARY)[_FUNCTION]
    except Exception as error:
        raise TargetError(
            f"it cannot load a library of target {target} ({last_line(error)}); use the key of a "
            "board of its architecture, with a glibc that is not older than here"
        ) from None
    tell(f"measure on board {address.key}")
    at = Path(str(place(MANIFEST_NAME))).parent
    found: dict[str, Any] = json.loads(str(measure(str(at), str(at / _FRAMES), *plan)))
    return found


def bench_library(architecture: str, progress: Callable[[str], None] | None = None) -> Path:
    """Return the library that is sent; build it if its sources are new.

    Parameters
    ----------
    architecture : str
        Of the board, as ``uname -m`` spells it.
    progress : callable, optional
        Called with one line before each step that takes its time.

    Raises
    ------
    TargetError, CompileError
        If there is no compiler for the architecture, or it refuses.
    AssetError
        If TVM's libraries for the board cannot be had.
    """
    folder = cache_folder() / "edge" / f"bench-{architecture}-{source_digest()}"
    library = folder / "bin" / _LIBRARY
    if not library.is_file():
        tell = progress or (lambda _step: None)
        write_runtime(folder, architecture, progress=progress)
        tell(f"compile {_LIBRARY} for {architecture}")
        sources = [folder / "src" / "resq.cc", folder / "programs" / "board_bench.cc"]
        compile_program(
            folder, sources, library, architecture=architecture, flags=("-shared", "-fPIC")
        )
    return library
