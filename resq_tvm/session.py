"""Run an artifact frame by frame: keyframe or residual, carried state, broken frames."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from resq_tvm.artifact import Artifact
from resq_tvm.buffers import Buffers, Frame, Output
from resq_tvm.costs import CostModel, Costs
from resq_tvm.device import prepare_thread_pool, resolve_threads, use_threads
from resq_tvm.errors import ClipError, ConfigError, FrameError
from resq_tvm.keyframes import Decision, KeyframePolicy, KeyframeSchedule, Kind, Mode, Reason
from resq_tvm.pages import LargePages
from resq_tvm.programs import Programs

OnBroken = Literal["raise", "skip"]


@dataclass(frozen=True)
class FrameInfo:
    """What the session did with its latest frame.

    ``index`` counts the stream's frames from zero, dropped and broken ones included; ``ms`` is
    the time of the network itself, without the checks and copies around it (of an NPU, which is
    simulated: what simulating it took).

    Attributes
    ----------
    kind : str
        The program that computed it; ``"frame"`` is the one without state. ``"repeat"``: none, it
        got the output of the frame that was computed last.
    reason : str or None
        Why it was not a residual frame (docs/streams.md); None for residual frames.
    changed : float or None
        Share of the input that changed since the keyframe (if the reason is ``"resume"``, or a
        rest went on: since the frame before; if it is ``"repeat"``: since the frame that was
        computed last); None if nobody looked.
    predicted_ms : float or None
        What a residual frame was expected to take, None if ``changed`` is not about that.
    """

    kind: Kind
    index: int
    ms: float
    reason: Reason | None = None
    changed: float | None = None
    predicted_ms: float | None = None


class Session:
    """One stream through an artifact.

    Parameters
    ----------
    artifact : Artifact or path
        What to run; several sessions may share one loaded `Artifact`.
    period : int, optional
        A keyframe every ``period`` frames; the artifact's own by default. A frame-quantized
        artifact computes every frame on its own.
    keyframes : str or KeyframePolicy
        ``"period"``, ``"adaptive"`` (a new keyframe when too much has changed; for artifacts that
        choose bits), or a policy with distances.
    copy : bool
        True returns outputs that the caller owns. False returns read-only views of the network's
        own buffers, which stay valid as long as they are referenced; those of an artifact that
        chooses bits change with the next frame.
    threads : int, optional
        Threads per frame; every available CPU by default.
    threshold_scale : float
        Factor on the thresholds of an artifact that chooses bits: more leaves out more.
    costs : Costs, optional
        How long programs take; learned from the session's own frames by default.
    large_pages : bool
        Whether weights, state and workspace move to large pages (`resq_tvm.pages`), which takes the
        first two keyframes 0.05 to 0.2 seconds more: for streams of more than some hundred frames.

    Raises
    ------
    ConfigError
        If ``period`` or ``threads`` is out of range, or adaptive keyframes are asked of an
        artifact that cannot tell what changed.

    Notes
    -----
    A session may be used by one thread at a time. Frames are given and outputs returned in the
    source model's layout, float32, batch 1. The session never keeps a reference to a frame.
    """

    def __init__(
        self,
        artifact: Artifact | str | PathLike[str],
        *,
        period: int | None = None,
        copy: bool = True,
        threads: int | None = None,
        threshold_scale: float = 1.0,
        keyframes: Mode | KeyframePolicy = "period",
        costs: Costs | None = None,
        large_pages: bool = False,
    ) -> None:
        prepare_thread_pool()
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact)
        manifest = self.artifact.manifest
        self.period = manifest.period if period is None else period
        if self.period < 1:
            raise ConfigError(f"period {self.period} is out of range; use 1 or more")
        self.threads = resolve_threads(threads)
        self.last: FrameInfo | None = None
        self._buffers = Buffers(manifest, copy)
        self._programs = Programs(self.artifact, threshold_scale)
        self._index = 0
        # State lies in two places in turn.
        self._to_gather = 2 if large_pages else 0
        self._pages = LargePages()
        self.keyframes = (
            keyframes if isinstance(keyframes, KeyframePolicy) else KeyframePolicy(keyframes)
        )
        if self.keyframes.mode == "adaptive" and not self._programs.can_probe:
            raise ConfigError(
                f"adaptive keyframes need a scheme that chooses bits, this is {manifest.scheme}; "
                "use a period"
            )
        if self.keyframes.repeat is not None and not self._programs.can_peek:
            raise ConfigError(
                f"repeating outputs needs a scheme that chooses bits and a library that can note "
                f"frames, this is {manifest.scheme} without; leave repeat out, or compile it anew"
            )
        self.costs: Costs = CostModel() if costs is None else costs
        self._schedule = self._new_schedule()

    @property
    def position(self) -> int:
        """Frames of the stream so far, lost ones included: the index of the next frame."""
        return self._index

    def reset(self) -> None:
        """Forget the stream: the next frame is frame 0 and a keyframe."""
        self._programs.state = None
        self._schedule = self._new_schedule()
        self._index = 0
        self.last = None

    def force_keyframe(self) -> None:
        """Make the next frame a keyframe; the period restarts there."""
        self._schedule.force("forced")

    def __call__(self, frame: Frame) -> Output:
        """Run one frame.

        Parameters
        ----------
        frame : ndarray or tuple of ndarray
            One float32 array per network input, in the source model's shape and layout.

        Returns
        -------
        ndarray or tuple of ndarray
            One float32 array per network output, in the source model's shape and layout; a
            network of one output gives the array itself.

        Raises
        ------
        FrameError
            If the shape or dtype is wrong or the frame holds NaN or infinity. The session is
            then as it was before the call.
        """
        tensors = self._buffers.load(frame, self._index)
        use_threads(self.threads)
        programs, schedule = self._programs, self._schedule
        before = programs.state
        programs.prepare()
        start = time.perf_counter()
        decision, share, predicted = self._decide(tensors)
        looked = time.perf_counter()
        results = programs.run(decision.kind, tensors)
        done = time.perf_counter()
        if schedule.keeps(decision.kind):
            programs.note(decision.kind, tensors)
        elapsed = time.perf_counter() - start
        schedule.note(decision.kind, (done - looked) * 1e3, share, (looked - start) * 1e3)
        if programs.state is not before:
            self._buffers.give_up(programs.state, decision.kind)
            self._gather()
        self.last = FrameInfo(
            decision.kind, self._index, elapsed * 1e3, decision.reason, share, predicted
        )
        self._index += 1
        return self._buffers.unload(results, programs.lasts(results))

    def run(
        self, frames: Iterable[Frame | None], *, on_broken: OnBroken = "raise"
    ) -> Iterator[Output]:
        """Run a stream and yield the outputs of its good frames.

        Parameters
        ----------
        frames : iterable
            Frames as `__call__` takes them; ``None`` stands for a dropped frame.
        on_broken : str
            ``"raise"`` stops at the first dropped or broken frame; ``"skip"`` yields nothing for
            it and makes the next good frame a keyframe. `last.index` tells which frame an
            output belongs to.

        Raises
        ------
        FrameError, ClipError
            With ``"raise"``, for a dropped or broken frame or a source that fails.
        """
        source = iter(frames)
        while True:
            try:
                frame = next(source)
            except StopIteration:
                return
            except (FrameError, ClipError):
                if on_broken == "raise":
                    raise
                self.skip()
                continue
            try:
                if frame is None:
                    raise FrameError(
                        f"frame {self._index} was dropped by its source; "
                        "pass on_broken='skip' to go on with a keyframe"
                    )
                output = self(frame)
            except FrameError:
                if on_broken == "raise":
                    raise
                self.skip()
                continue
            yield output

    def skip(self) -> None:
        """Count a frame that was lost; the next frame is a keyframe."""
        self._index += 1
        self._schedule.force("lost")

    @contextmanager
    def observed(self) -> Iterator[list[tuple[str, float]]]:
        """Record every kernel call of the frames that run inside the context.

        Yields
        ------
        list of (str, float)
            Filled while frames run: the kernel's name and its milliseconds. Each call costs some
            microseconds more while it is observed.
        """
        calls: list[tuple[str, float]] = []
        start = 0.0

        def note(_function: Any, name: str, before: bool, *_values: Any) -> int:
            nonlocal start
            if name.startswith("vm."):
                return 0  # the machine's own housekeeping
            if before:
                start = time.perf_counter()
            else:
                calls.append((name, (time.perf_counter() - start) * 1e3))
            return 0  # go on with the call

        with self._programs.instrumented(note):
            yield calls

    def _gather(self) -> None:
        """Move what frames walk through to large pages, after the first states."""
        if self._to_gather:
            self._to_gather -= 1
            self._pages.gather([*self._programs.memory, *self._buffers.tensors])

    def _new_schedule(self) -> KeyframeSchedule:
        programs = self._programs
        return KeyframeSchedule(
            self.keyframes,
            self.keyframes.limit(self.period),
            self.costs,
            has_residual=programs.has_residual,
            can_probe=programs.can_probe,
            can_rest=programs.has_frame,
            can_peek=programs.can_peek,
        )

    def _decide(self, tensors: list[Any]) -> tuple[Decision, float | None, float | None]:
        """Return what computes the frame, the share that changed, a residual's expected time."""
        schedule, programs = self._schedule, self._programs
        share: float | None = None
        step = schedule.start()
        if step == "latest":
            share = programs.peek(tensors)
            step = schedule.after_latest(share)
        elif step == "peek":
            share = programs.peek(tensors)
            step = schedule.after_peek(share)
        if isinstance(step, Decision):
            return step, None if step.kind == "residual" else share, None
        share = programs.probe(tensors)
        return schedule.after_probe(share), share, schedule.expected(share)
