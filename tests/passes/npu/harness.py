"""Networks lowered for NPUs: run on the simulated machine beside the reference executor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.npu.host import HostLibrary
from resq_tvm.passes.npu.lower import LoweredNpu, lower_npu
from resq_tvm.passes.partition import Partition
from resq_tvm.passes.pipeline import generate_code
from resq_tvm.reference.executor import Executor
from resq_tvm.targets.npu.commands import TensorPlace
from resq_tvm.targets.npu.functional import Machine
from resq_tvm.targets.preset import Target
from tests.graphs import NetworkBuilder, op
from tests.schedules.npu.harness import no_races, orders

Array = NDArray[Any]
SCHEMES = ("W8A8", "W4A4", "W8A8->W4A4", "W8A8->W3A3", "W8A8->W2A2", "W4A8->W8A4")


class ExactNetwork(NetworkBuilder):
    """Draws operators that mean the same to the bit everywhere: IEEE operations alone."""

    highest = 16  # rows of what is resized

    def activation(self) -> Any:
        x = self.pick()
        c = self.shape(x)[3]
        made = {
            "relu": lambda: op.nn.relu(x),
            "relu6": lambda: op.clip(x, 0, 6),
            "prelu": lambda: op.nn.prelu(x, self.constant(c), axis=3),
            "leaky": lambda: op.nn.leakyrelu(x, 0.1),
        }
        kind = self.random.choice(list(made))
        return self.emit(made[kind](), kind)

    def pool2d(self) -> Any:
        x = self.pick(lambda v: min(self.shape(v)[1:3]) >= 2)
        k = 3 if min(self.shape(x)[1:3]) >= 3 else 2
        pad = self.random.randint(0, k // 2)
        return self.emit(op.nn.max_pool2d(x, [k, k], [2, 2], [pad] * 4, layout="NHWC"), "maxpool")

    def mean(self) -> Any:
        return self.concat()

    def resize(self) -> Any:
        x = self.pick(lambda v: self.shape(v)[1] <= self.highest)
        _, h, w, _ = self.shape(x)
        made = op.image.resize2d(
            x,
            (2 * h, 2 * w),
            layout="NHWC",
            method="nearest_neighbor",
            coordinate_transformation_mode="asymmetric",
            rounding_method="floor",
        )
        return self.emit(made, "resize")


class TallNetwork(ExactNetwork):
    """Planes of many rows and few columns: what cascades are for."""

    planes = ((64, 6), (75, 5), (96, 4))
    highest = 48

    def resize(self) -> Any:
        if all(self.shape(v)[1] > self.highest for v in self.pool):
            return self.conv()
        return super().resize()

    def transposed(self) -> Any:
        return self.conv()


def tall_network(seed: int, operators: int = 8) -> tvm.IRModule:
    """Return a random exact module of tall planes."""
    return TallNetwork(seed).build(operators)


def exact_network(seed: int, operators: int = 8) -> tvm.IRModule:
    """Return a random module whose value does not depend on who computes it."""
    return ExactNetwork(seed).build(operators)


def network(build: Any, shape: tuple[int, ...] = (1, 6, 5, 3)) -> tvm.IRModule:
    """Return ``main`` with the outputs of ``build(emit, x)``."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            result = build(lambda expr, name: bb.emit(expr, name_hint=name), x)
            out = bb.emit_output(relax.Tuple(result))
        bb.emit_func_output(out)
    return bb.finalize()


class Device:
    """A network on the simulated machine.

    Attributes
    ----------
    order : str
        In whose order commands run, as of `tests.schedules.npu.harness.orders`.
    """

    def __init__(self, mod: tvm.IRModule, target: Target, *, state_dtype: str, **more: Any) -> None:
        assert target.npu is not None
        self.target = target
        self.lowered: LoweredNpu = lower_npu(mod, target, state_dtype=state_dtype, **more)
        stream = self.lowered.stream
        for program in stream.programs.values():
            no_races(stream, program)
        executable = generate_code(self.lowered, target)
        library = None
        if executable is not None:
            library = executable.jit() if hasattr(executable, "jit") else executable.mod
        self._host = HostLibrary(library)
        self.order = "stream"
        self._orders = {n: dict(orders(target.npu, stream, n)) for n in stream.programs}
        self.reset()

    def reset(self) -> None:
        """Start with a memory of parameters, and junk where nothing is."""
        stream = self.lowered.stream
        dram = np.random.default_rng(3).integers(0, 256, stream.dram_bytes, np.uint8)
        for name, address in stream.params.items():
            contents = self.lowered.params[name].reshape(-1).view(np.uint8)
            dram[address : address + contents.size] = contents
        assert self.target.npu is not None
        self.machine = Machine(self.target.npu, stream, dram)

    @property
    def orders(self) -> list[str]:
        """Names of all orders that differ."""
        return list(dict.fromkeys(name for found in self._orders.values() for name in found))

    def frame(self, number: int, *frames: Array) -> list[Array]:
        """Run the keyframe (number 0), or the residual program if there is one."""
        return self.run(
            "residual" if number and "residual" in self._orders else "keyframe", *frames
        )

    def run(self, name: str, *frames: Array) -> list[Array]:
        """Run a program; return its outputs, (h, w, c)."""
        program = self.lowered.stream.programs[name]
        for place, frame in zip(program.inputs, frames, strict=True):
            self.machine.write(place, frame.reshape(place.h, place.w, place.c))
        self.machine.run(name, self._host, self._orders[name].get(self.order))
        return [self.machine.read(place) for place in program.outputs]

    def state(self) -> tuple[TensorPlace, ...]:
        """Return the places of the state."""
        return self.lowered.stream.programs["keyframe"].state


def reference(mod: tvm.IRModule, state_dtype: str, frames: list[Array]) -> list[list[Array]]:
    """Return the outputs of a keyframe, and of residual frames behind it if there are any."""
    partition: Any = Partition(state_dtype, False)
    programs = {v.name_hint: Executor(f) for v, f in partition(mod).functions_items()}
    results = []
    state: Any = ()
    with torch.no_grad():
        for number, frame in enumerate(map(torch.from_numpy, frames)):
            if number and "residual" in programs:
                results.append(programs["residual"](frame, *state)[0])
            else:
                found, state = programs["keyframe"](frame)
                results.append(found)
    return [[y.numpy() for y in outputs] for outputs in results]


def check_exact(
    mod: tvm.IRModule, target: Target, frames: list[Array], *, state_dtype: str, **more: Any
) -> Device:
    """Compare every output of every frame with the reference, in every order, bit by bit."""
    device = Device(mod, target, state_dtype=state_dtype, **more)
    wanted = reference(mod, state_dtype, frames)
    for order in device.orders:
        device.order = order
        device.reset()
        for number, (frame, outputs) in enumerate(zip(frames, wanted, strict=True)):
            found = device.frame(number, frame)
            for index, (got, want) in enumerate(zip(found, outputs, strict=True)):
                what = f"output {index} of frame {number} ({order})"
                np.testing.assert_array_equal(got, want.reshape(got.shape), err_msg=what)
    return device
