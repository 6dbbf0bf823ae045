"""What quantizers are fitted to: frames of clips, and the values that they cause in the network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.errors import CalibrationError
from resq_tvm.network import Network
from resq_tvm.reference.executor import Executor

Frame = NDArray[Any] | tuple[NDArray[Any], ...]
Clip = Iterable[Frame]
Inputs = tuple[torch.Tensor, ...]
Store = dict[tuple[str, str], dict[int, torch.Tensor]]


@dataclass(frozen=True)
class FrameGroups:
    """Runs of one keyframe and its residual frames, as network inputs (NHWC, float32)."""

    groups: tuple[tuple[Inputs, ...], ...]

    @property
    def count(self) -> int:
        """Number of frames: any of them is a keyframe to the keyframe quantizers."""
        return sum(len(group) for group in self.groups)

    @property
    def residuals(self) -> int:
        """Number of frames that have a keyframe before them in their run."""
        return self.count - len(self.groups)


def read_groups(net: Network, clips: Iterable[Clip], period: int, samples: int) -> FrameGroups:
    """Read runs of ``period`` frames, one from each clip in turn, until there are enough.

    Enough is ``samples`` residual frames, or ``samples`` keyframes at period 1. Clips are not
    read further than that.

    Raises
    ------
    CalibrationError
        If a frame does not fit the network or is not finite, or if there are too few frames.
    """
    groups: list[tuple[Inputs, ...]] = []
    missing = samples
    sources = [_runs(net, clip, number, period) for number, clip in enumerate(clips)]
    while sources and missing > 0:
        for source in list(sources):
            run = next(source, None)
            if run is None:
                sources.remove(source)
                continue
            run = run[:missing] if period == 1 else run[: missing + 1]
            groups.append(run)
            missing -= 1 if period == 1 else len(run) - 1
            if missing <= 0:
                break
    found = FrameGroups(tuple(groups))
    if not found.count:
        raise CalibrationError("the calibration clips hold no frame; give at least one clip")
    if period > 1 and not found.residuals:
        raise CalibrationError(
            f"the calibration clips hold {found.count} frame(s), none next to another; "
            "residuals need clips of at least two consecutive frames"
        )
    return found


def read_clip(net: Network, clip: Clip, number: int = 0) -> list[Inputs]:
    """Read all frames of a clip as network inputs; ``number`` names the clip in errors.

    Raises
    ------
    CalibrationError
        If a frame does not fit the network or is not finite.
    """
    return [_inputs(net, f, f"clip {number}, frame {index}") for index, f in enumerate(clip)]


def collect(
    main: Any,
    frames: FrameGroups,
    wanted: Mapping[str, Mapping[str, Collection[int]]],
    recurrent: bool,
) -> Store:
    """Run the float network over all frames and keep the samples asked for.

    Parameters
    ----------
    main : relax.Function
        Canonical ``main``.
    wanted : mapping
        ``"keyframe"`` → value → which frames; ``"residual"`` → value → which residual frames
        (both counted from 0).
    recurrent : bool
        Residuals against the previous frame instead of the keyframe.

    Returns
    -------
    dict
        (program, value) → frame → sample: the value, or its difference of a residual frame.
    """
    store: Store = {(program, value): {} for program, values in wanted.items() for value in values}
    names = {value for _, value in store}
    seen: dict[str, torch.Tensor] = {}
    run = Executor(main, watch=names, observe=seen.__setitem__)
    number = residual = 0
    for group in frames.groups:
        reference: dict[str, torch.Tensor] = {}
        for position, inputs in enumerate(group):
            seen.clear()
            run(*inputs)
            for value, chosen in wanted["keyframe"].items():
                if number in chosen:
                    store["keyframe", value][number] = seen[value]
            number += 1
            if position > 0:
                for value, chosen in wanted["residual"].items():
                    if residual in chosen:
                        store["residual", value][residual] = seen[value] - reference[value]
                residual += 1
            if position == 0 or recurrent:
                reference = dict(seen)
    for (program, value), samples in store.items():
        if not all(bool(torch.isfinite(x).all()) for x in samples.values()):
            raise CalibrationError(
                f"value {value} is not finite on a {program} frame of the calibration clips; "
                "check the model and the frames' preprocessing"
            )
    return store


def _runs(net: Network, clip: Clip, number: int, period: int) -> Iterator[tuple[Inputs, ...]]:
    run: list[Inputs] = []
    for index, frame in enumerate(clip):
        run.append(_inputs(net, frame, f"clip {number}, frame {index}"))
        if len(run) == period:
            yield tuple(run)
            run = []
    if run:
        yield tuple(run)


def _inputs(net: Network, frame: Frame, place: str) -> Inputs:
    arrays = frame if isinstance(frame, tuple) else (frame,)
    if len(arrays) != len(net.inputs):
        raise CalibrationError(
            f"{place}: {len(arrays)} array(s) given; {net.name} takes {len(net.inputs)}"
        )
    inputs = []
    for index, (array, info) in enumerate(zip(arrays, net.inputs, strict=True)):
        given = np.asarray(array)
        if tuple(given.shape) != tuple(info.shape):
            raise CalibrationError(
                f"{place}: input {info.name} has shape {given.shape}; "
                f"{net.name} takes {tuple(info.shape)}: resize the frames"
            )
        if not np.issubdtype(given.dtype, np.floating):
            raise CalibrationError(
                f"{place}: input {info.name} has dtype {given.dtype}; "
                "convert frames to float32 as the network's preprocessing says"
            )
        if not np.isfinite(given).all():
            raise CalibrationError(f"{place}: input {info.name} holds NaN or infinity; drop it")
        canonical = np.ascontiguousarray(net.to_canonical(given.astype(np.float32), index))
        inputs.append(torch.from_numpy(canonical))
    return tuple(inputs)
