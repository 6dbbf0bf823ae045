"""Small kernels, and devices that misbehave, for the tests of tuning."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.schedules.tuning.devices import DeviceLostError, LocalDevice
from resq_tvm.schedules.tuning.tasks import Task, extract
from resq_tvm.targets.preset import get_target
from tests.schedules.harness import residual_kernel
from tests.schedules.test_conv import conv_of


def convolution(
    seed: int = 0, o: int = 32, channels: tuple[int, ...] = (16,), k: int = 3, groups: int = 1
) -> FusedKernel:
    """Return a small residual convolution for this machine."""
    target, rng = get_target("auto"), np.random.default_rng(seed)
    anchor, inputs, h, w = conv_of(target, rng, channels, o, (6, 9), (k, k), groups=groups)
    return residual_kernel(target, anchor, inputs, h, w, rng)


def task(seed: int = 0, **shape: Any) -> Task:
    """Return the one task of a small convolution."""
    (made,) = extract([(convolution(seed, **shape), 1.0)], get_target("auto"))
    return made


class Misbehaving(LocalDevice):
    """Does something evil at the n-th run of the whole test, counted in a file."""

    def __init__(self, evil: str, at: int, counter: str) -> None:
        super().__init__(1)
        self.evil, self.at, self.counter = evil, at, Path(counter)

    def run(self, programs: Any, repeats: int, limit_s: float | None) -> Any:
        """Run, or do the evil thing."""
        with self.counter.open("a") as file:
            file.write(".")
        if self.counter.stat().st_size == self.at:
            match self.evil:
                case "crash":
                    os.abort()
                case "hang":
                    time.sleep(1000)
                case "raise":
                    raise RuntimeError("the candidate did something forbidden")
                case "lost":
                    raise DeviceLostError("the board was switched off")
        ran = super().run(programs, repeats, limit_s)
        if self.counter.stat().st_size == self.at and self.evil == "wrong":
            for outputs, _ in ran:
                outputs[1] = outputs[1] + 1
        return ran
