"""A hand-made two-program network: TVM's own lowering stands in for the compiler."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.artifact import Artifact, write_artifact
from resq_tvm.passes.executable import link
from resq_tvm.targets.preset import PRESETS, Target

SHAPE = (1, 3, 6, 5)  # NCHW, as in the imagined source model


@I.ir_module
class _Programs:
    @R.function
    def keyframe(x: R.Tensor((1, 6, 5, 3), "float32"), params: R.Tuple(R.Tensor((3,), "float32"))):
        y = R.add(R.multiply(x, R.const(2.0, "float32")), params[0])
        return ((y,), (x, y))

    @R.function
    def residual(
        x: R.Tensor((1, 6, 5, 3), "float32"),
        state: R.Tuple(R.Tensor((1, 6, 5, 3), "float32"), R.Tensor((1, 6, 5, 3), "float32")),
        params: R.Tuple(R.Tensor((3,), "float32")),
    ):
        # Ten times the difference: a test can tell a residual frame from a keyframe.
        d = R.multiply(R.subtract(x, state[0]), R.const(10.0, "float32"))
        return ((R.add(state[1], d),), (state[0], state[1]))


BIAS = np.array([1.0, 2.0, 3.0], dtype=np.float32)


def expect_key(x: np.ndarray) -> np.ndarray:
    return x * np.float32(2) + BIAS.reshape(1, 3, 1, 1)


def expect_residual(x: np.ndarray, key: np.ndarray) -> np.ndarray:
    return expect_key(key) + (x - key) * np.float32(10)


@dataclass(frozen=True)
class FakeCompiled:
    executable: Any
    params: dict[str, np.ndarray]
    info: dict[str, Any]
    kernels: dict[str, Any] = field(default_factory=dict)
    target: Target = PRESETS["x86-generic"]


@cache
def compiled() -> FakeCompiled:
    machine = tvm.target.Target({"kind": "llvm"})
    with machine:
        executable = link(relax.get_default_pipeline(machine)(_Programs), machine)
    info = {
        "scheme": "W8A8->W8A4",
        "period": 3,
        "target": {"name": "x86-generic", "features": []},
        "inputs": [{"name": "image", "shape": SHAPE, "layout": "NCHW"}],
        "outputs": [{"name": "logits", "shape": SHAPE, "layout": "NCHW"}],
        "state": [
            {"name": f"state_{i}", "shape": (1, 6, 5, 3), "dtype": "float32", "bytes": 360}
            for i in range(2)
        ],
        "layers": [],
        "bops": {"macs": 90},
        "options": {"state_dtype": "float32"},
    }
    return FakeCompiled(executable, {"bias": BIAS}, info)


def write(folder: Path, **changes: Any) -> Artifact:
    base = compiled()
    return write_artifact(
        FakeCompiled(base.executable, base.params, {**base.info, **changes}), folder
    )
