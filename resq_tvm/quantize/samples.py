"""What quantizers are fitted to: frames of clips, and the values that they cause in the network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.errors import CalibrationError
from resq_tvm.network import Network
from resq_tvm.reference.executor import Executor

Item = TypeVar("Item")
Frame = NDArray[Any] | tuple[NDArray[Any], ...]
Clip = Iterable[Frame]
Inputs = tuple[torch.Tensor, ...]
Store = dict[tuple[str, str], dict[int, torch.Tensor]]
_Run = tuple[int, tuple[Inputs, ...]]  # its number in its clip, its frames

FARTHEST = 50


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
    """Read runs of ``period`` frames from all over the clips, as many of each as there are.

    Enough is ``samples`` residual frames, or ``samples`` keyframes at period 1. Which runs of a
    clip are taken is drawn at random, the same every time. Memory holds at most twice what is
    taken; of a clip at most `FARTHEST` times as many runs are read as would do.

    Raises
    ------
    CalibrationError
        If a frame does not fit the network or is not finite, or if there are too few frames.
    """
    enough = -(-samples // max(1, period - 1))
    draw = np.random.default_rng(0)
    drawn: list[list[_Run]] = []
    read = 0
    for number, clip in enumerate(clips):
        runs = islice(_runs(net, clip, number, period), FARTHEST * enough)
        some, count = _drawn(runs, enough, draw)
        read += count
        drawn = _in_turn([*drawn, some], period, samples)
    if not read:
        raise CalibrationError("the calibration clips hold no frame; give at least one clip")
    # In the clips' order again, and no residual frame more than asked for.
    groups, missing = [], samples
    for _, run in (pair for runs in drawn for pair in sorted(runs, key=itemgetter(0))):
        if missing > 0:  # the last run in turn may be longer than the last in order
            groups.append(run[: missing + (period > 1)])
            missing -= _weight(groups[-1], period)
    found = FrameGroups(tuple(groups))
    if period > 1 and not found.residuals:
        raise CalibrationError(
            f"the calibration clips hold {read} frame(s), none next to another; "
            "residuals need clips of at least two consecutive frames"
        )
    return found


def _drawn(
    runs: Iterable[tuple[Inputs, ...]], most: int, draw: np.random.Generator
) -> tuple[list[_Run], int]:
    """Draw some of a clip's runs, in random order; return them and how many frames were read.

    Every run is as likely as any other, however many there are (reservoir sampling).
    """
    kept: list[_Run] = []
    frames = 0
    for number, run in enumerate(runs):
        frames += len(run)
        slot = int(draw.integers(number + 1))
        if number < most:  # the last place goes to whoever was in the new run's
            kept.append((number, run))
            kept[slot], kept[number] = kept[number], kept[slot]
        elif slot < most:
            kept[slot] = (number, run)
    return kept, frames


def _in_turn(clips: list[list[_Run]], period: int, samples: int) -> list[list[_Run]]:
    """Take a run from each clip in turn until there are enough."""
    taken: list[list[_Run]] = [[] for _ in clips]
    missing = samples
    for place in range(max(map(len, clips))):
        for runs, mine in zip(clips, taken, strict=True):
            if place < len(runs) and missing > 0:
                weight = _weight(runs[place][1], period)
                mine.extend(runs[place : place + 1] if weight else [])
                missing -= weight
    return taken


def _weight(run: tuple[Inputs, ...], period: int) -> int:
    """Return how many samples a run is: its residual frames, or its frames at period 1."""
    return len(run) - (period > 1)


def read_clip(net: Network, clip: Clip, number: int = 0) -> list[Inputs]:
    """Read all frames of a clip as network inputs; ``number`` names the clip in errors.

    Raises
    ------
    CalibrationError
        If a frame does not fit the network or is not finite.
    """
    return [_inputs(net, f, f"clip {number}, frame {index}") for index, f in enumerate(clip)]


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Take at most ``most`` items, evenly spread; the first and the last are among them."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in places]


def by_size(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Cut items into runs whose sizes add up to at most ``most``, or that are of one item."""
    group: list[Item] = []
    total = 0
    for item in items:
        if group and total + size(item) > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group


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
