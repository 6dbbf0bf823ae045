"""A hand-made network for an NPU: the programs of `tests.resq_tvm.tiny_artifact`, in commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from resq_tvm.artifact import Artifact, write_artifact
from resq_tvm.passes.npu.lower import LoweredNpu
from resq_tvm.passes.pipeline import generate_code
from resq_tvm.targets.npu.commands import (
    Command,
    Engine,
    HostCall,
    Load,
    Operand,
    Program,
    Step,
    Store,
    Stream,
    TensorPlace,
    Vector,
)
from resq_tvm.targets.preset import Target, get_target
from tests.resq_tvm import tiny_artifact

H, W, C = 6, 5, 3
_SIZE = H * W * C * 4
_BIAS, _X, _Y, _HELD, _KEPT, _HOST = (n * 1024 for n in range(6))  # in DRAM and in SRAM
TARGET = get_target("npu-micro")


@I.ir_module
class _Host:
    @R.function
    def negate(y: R.Tensor((1, 6, 5, 3), "float32")):
        return R.negative(y)


@dataclass(frozen=True)
class FakeCompiled:
    executable: Any
    params: dict[str, np.ndarray]
    info: dict[str, Any]
    lowered: LoweredNpu
    kernels: dict[str, Any]
    target: Target = TARGET


def place(name: str, address: int, memory: str = "dram", format: str = "f32") -> TensorPlace:
    return TensorPlace(name, memory, address, H, W, C, format)


def _transfer(kind: type[Load] | type[Store], address: int, size: int, **more: Any) -> Command:
    return kind(address, address, 1, 1, size, 0, 0, 0, 0, **more)


def _operand(address: int, one: bool = False) -> Operand:
    h, w = (1, 1) if one else (H, W)
    return Operand("sram", "f32", address, h, w, C, w * C * 4, C * 4)


# y = 2x + bias; y = kept + 10 (x − held)
_KEY = (
    Step("read", index=0),
    Step("scalar", value=2.0),
    Step("mul", (0, 1)),
    Step("read", index=1),
    Step("add", (2, 3)),
    Step("write", (4,), index=2),
)
_DELTA = (
    Step("read", index=0),
    Step("read", index=1),
    Step("sub", (0, 1)),
    Step("scalar", value=10.0),
    Step("mul", (2, 3)),
    Step("read", index=2),
    Step("add", (5, 4)),
    Step("write", (6,), index=3),
)


def _keyframe(memory: str) -> Program:
    commands: list[Command] = [
        _transfer(Load, _BIAS, C * 4),
        _transfer(Load, _X, _SIZE),
        Vector(
            0, H, W, C, (_operand(_X), _operand(_BIAS, one=True), _operand(_Y)),
            waits=((Engine.LOAD, 2),),
        ),
        replace(_transfer(Store, _Y, _SIZE), waits=((Engine.VECTOR, 1),)),
    ]  # fmt: skip
    # The state: the frame, then the output, in DRAM or where SRAM holds them.
    if memory == "dram":
        for source, to in ((_X, _HELD), (_Y, _KEPT)):
            commands.append(Store(to, source, 1, 1, _SIZE, 0, 0, 0, 0, ((Engine.VECTOR, 1),)))
        state = (place("held", _HELD), place("kept", _KEPT))
    else:
        state = (place("held", _X, "sram"), place("kept", _Y, "sram"))
    return Program("keyframe", (place("x", _X),), (place("y", _Y),), state, (tuple(commands),))


def _residual(memory: str) -> Program:
    x = _X if memory == "dram" else _HOST
    commands: list[Command] = [Load(_X, x, 1, 1, _SIZE, 0, 0, 0, 0, kernel=1)]
    held, kept = (_HELD, _KEPT) if memory == "dram" else (_X, _Y)
    if memory == "dram":
        commands += [_transfer(Load, a, _SIZE, kernel=1) for a in (_HELD, _KEPT)]
    result = _BIAS  # nobody needs the bias
    commands += [
        Vector(
            1, H, W, C, (_operand(x), _operand(held), _operand(kept), _operand(result)),
            waits=((Engine.LOAD, len(commands)),), kernel=1,
        ),
        Store(_Y, result, 1, 1, _SIZE, 0, 0, 0, 0, ((Engine.VECTOR, 1),), 1),
    ]  # fmt: skip
    return Program(
        "residual", (place("x", _X),), (place("y", _Y),), _keyframe(memory).state,
        (tuple(commands),),
    )  # fmt: skip


def _with_host(program: Program) -> Program:
    shape = (1, H, W, C)
    call = HostCall("negate", "negative", (place("y", _Y),), (place("n", _HOST),), (shape, shape))
    return replace(program, outputs=(place("n", _HOST),), items=(*program.items, call))


def stream(host: bool = False, memory: str = "dram") -> Stream:
    programs = [_keyframe(memory), _residual(memory)]
    if host:
        programs = [_with_host(p) for p in programs]
    return Stream(
        TARGET.name, ("k_scale", "r_delta"), (_KEY, _DELTA), {"bias": _BIAS}, 6 * 1024,
        {p.name: p for p in programs},
    )  # fmt: skip


def compiled(
    host: bool = False, memory: str = "dram", *, made: Stream | None = None, **changes: Any
) -> FakeCompiled:
    info = {
        **tiny_artifact.compiled().info,
        "target": {"name": TARGET.name, "features": []},
        "kernels": [
            {"name": "k_scale", "program": "keyframe"}, {"name": "r_delta", "program": "residual"},
        ],
        "opaque": {"keyframe": ["negative y"]} if host else {},
        "bops": {"macs": 90, "bops_keyframe": 4000, "bops_residual": 1000},
        **changes,
    }  # fmt: skip
    nothing = tvm.IRModule()
    lowered = LoweredNpu(
        nothing, nothing, {"bias": tiny_artifact.BIAS}, {}, {}, [], [], {},
        made or stream(host, memory), _Host if host else nothing,
    )  # fmt: skip
    executable = generate_code(lowered, TARGET)
    return FakeCompiled(executable, {"bias": tiny_artifact.BIAS}, info, lowered, {"kernels": []})


def write(folder: Path, host: bool = False, memory: str = "dram", **more: Any) -> Artifact:
    return write_artifact(compiled(host, memory, **more), folder)  # type: ignore[arg-type]
