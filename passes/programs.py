"""Write one lowered program: its kernels as PrimFuncs, and the functions that call them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.passes.changes import THRESHOLDS, Workspace, with_thresholds
from resq_tvm.passes.fuse import plane_of
from resq_tvm.passes.graph import Graph, is_linear_layer, op_name, recall, shape_of
from resq_tvm.passes.kernel_spec import Thresholds, read_kernel
from resq_tvm.passes.layouts import Plan, renamed
from resq_tvm.passes.limits import CodeLimits
from resq_tvm.schedules.choice import Decider
from resq_tvm.schedules.context import input_maps, output_maps
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.emit import emit, emit_comparison
from resq_tvm.schedules.spec import FusedKernel
from resq_tvm.targets.preset import Target

Emitted = tuple[Any, FusedKernel, list[int]]
"""A PrimFunc, the kernel that it is of, and its entries of ``params``."""


@dataclass(frozen=True, eq=False)
class KernelRecord:
    """One kernel: where it runs, what it means, how it is scheduled, its entries of ``params``.

    ``origin`` says who decided (`resq_tvm.schedules.choice.Chosen`).
    """

    program: str
    layer: str | None
    kernel: FusedKernel
    decision: Decision
    origin: str
    params: tuple[int, ...]
    index: int = 0


class Constants:
    """The shared parameter tuple; equal arrays are stored once."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._known: dict[str, int] = {}

    def add(self, name: str, array: NDArray[Any]) -> int:
        """Return the tuple index of ``array``."""
        array = np.ascontiguousarray(array)
        digest = hashlib.sha256(array.tobytes())
        digest.update(f"{array.dtype}{array.shape}".encode())
        key = digest.hexdigest()
        if key not in self._known:
            self._known[key] = len(self.arrays)
            self.arrays[name] = array
        return self._known[key]


class Writer:
    """Writes one lowered program."""

    def __init__(
        self,
        plan: Plan,
        constants: Constants,
        kernels: dict[str, KernelRecord],
        target: Target,
        decide: Decider,
    ) -> None:
        self.plan, self.constants, self.kernels = plan, constants, kernels
        self.target, self.decide = target, decide
        self.emitted: dict[Any, Emitted] = {}
        self.compared: dict[Any, Emitted] = {}  # the gates of kernels, alone
        self.thresholds = Thresholds()
        self.workspace: Workspace | None = None
        if "resq.deltas" in plan.func.attrs:
            calls = plan.composite_calls()
            planes = [plane_of(plan.results(var)[0]) for var, _ in calls]
            outputs = {
                v: i
                for i, v in enumerate(plan.outputs)
                if plan.physical_type(v)[0] == plan.spec(v).shape
            }
            self.workspace = Workspace(plan.func, plan.state_in, planes, len(calls), outputs)

    def emit_kernels(self) -> None:
        """Ask the schedules for a PrimFunc per composite call."""
        plan = self.plan
        read: list[tuple[Any, Any, FusedKernel]] = []
        limits = CodeLimits()
        for var, call in plan.composite_calls():
            func = plan.composite(call)
            reads = [plan.spec(a) for a in call.args]
            taken = {s.name for s in reads}
            exports = [renamed(plan.spec(v), taken) for v in plan.results(var)]
            kernel = read_kernel(
                call.op.name_hint, func, reads, exports, self.target.code, self.thresholds
            )
            if self.target.arm:
                kernel = limits.apply(kernel, list(call.args), plan.results(var))
            if self.workspace is not None:
                kernel = self.workspace.plan(kernel, len(read), list(call.args), plan.results(var))
            read.append((var, func, kernel))
        for index, (var, func, kernel) in enumerate(read):
            if self.workspace is not None:
                kernel = with_thresholds(kernel, len(self.thresholds.values))
            chosen = self.decide(kernel)
            indices = self._keep(self.emitted, var, kernel, emit, chosen.decision)
            if kernel.gate is not None:
                self._keep(self.compared, var, kernel, emit_comparison, chosen.decision)
            self.kernels[kernel.name] = KernelRecord(
                plan.program,
                layer_of(func),
                kernel,
                chosen.decision,
                chosen.origin,
                tuple(indices),
                index,
            )

    def _keep(
        self, table: dict[Any, Emitted], var: Any, kernel: FusedKernel, how: Any, decision: Decision
    ) -> list[int]:
        """Emit a kernel into a table; return its entries of ``params``."""
        prim, packed = how(kernel, decision, self.target)
        name = str(prim.attrs["global_symbol"])
        indices = [self.constants.add(f"{name}.{n}", a) for n, a in packed]
        table[var] = (prim, kernel, indices)
        return indices

    def write(self, out: tvm.IRModule, inputs: dict[int, int]) -> None:
        """Add the program and its PrimFuncs to ``out``; of inputs that are state, also ``note``."""
        bb = relax.BlockBuilder()
        handles = {v: bb.add_func(p, k.name) for v, (p, k, _) in self.emitted.items()}
        compared = {
            v: bb.add_func(p, p.attrs["global_symbol"]) for v, (p, _, _) in self.compared.items()
        }
        if self.workspace is None:
            self._program(bb, handles, self.plan.program, list(self.emitted))
            frames = [self.plan.state_out[inputs[i]] for i in sorted(inputs)]
            if len(frames) == len(self.plan.frames):
                makers = [v for v in self.emitted if set(frames) & set(self.plan.results(v))]
                self._program(bb, handles, "note", makers, frames)
        else:
            first = list(self.compared)
            if first:
                self._program(bb, handles, "probe", first)
                self._program(bb, compared, "peek", first)
            rest = [v for v in self.emitted if v not in first]
            self._program(bb, handles, self.plan.program, rest)
        for gv, func in bb.finalize().functions_items():
            out[gv] = func

    def _program(
        self,
        bb: Any,
        handles: dict[Any, Any],
        name: str,
        calls: list[Any],
        noted: list[Any] | None = None,
    ) -> None:
        """Write a function that makes some of the plan's calls; others have been made before.

        It returns what changed (``probe``, ``peek``), the state that is ``noted``, or all outputs
        and state.
        """
        plan, workspace = self.plan, self.workspace
        frames = [relax.Var(v.name, v.ty) for v in plan.frames]
        types = [relax.TensorType(*plan.physical_type(v)) for v in plan.state_in]
        state = relax.Var("state", relax.TupleType(types))
        params = relax.Var("params", _tuple_type(self.constants.arrays.values()))
        arguments = [*frames, *([state] if plan.program == "residual" else [])]
        kept = None
        if workspace is not None:
            kept = relax.Var("workspace", _tuple_type(workspace.tensors))
            arguments.append(kept)
        with bb.function(name, [*arguments, params]):
            with bb.dataflow():
                env: dict[Any, Any] = dict(zip(plan.frames, frames, strict=True))
                for i, v in enumerate(plan.state_in):
                    env[v] = bb.emit(relax.TupleGetItem(state, i), v.name)
                for var, expr in plan.graph.bindings:
                    if var in calls:
                        table = self.compared if name == "peek" else self.emitted
                        self._call(bb, env, var, expr, table[var], handles[var], params, kept)
                    elif var in self.emitted:
                        self._recall(bb, env, var, kept)
                    elif op_name(expr) and name not in ("probe", "peek", "note"):
                        env[var] = bb.emit(recall(expr, env.__getitem__), var.name)
                if name in ("probe", "peek"):
                    result = bb.emit_output(relax.Tuple(self._gate_maps(bb, kept)))
                elif noted is not None:
                    result = bb.emit_output(relax.Tuple([env[v] for v in noted]))
                else:
                    ys = relax.Tuple([env[v] for v in plan.outputs])
                    ss = relax.Tuple([env[v] for v in plan.state_out])
                    result = bb.emit_output(relax.Tuple([ys, ss]))
            bb.emit_func_output(result)

    def _gate_maps(self, bb: Any, kept: Any) -> list[Any]:
        maps = [k.sparse.gate_map for _, k, _ in self.emitted.values() if k.sparse is not None]
        return [self._kept(bb, kept, m.name) for m in maps if m is not None]

    def _kept(self, bb: Any, kept: Any, name: str) -> Any:
        """Return a tensor of the workspace."""
        assert self.workspace is not None
        return bb.emit(relax.TupleGetItem(kept, self.workspace.place[name]), f"w_{name}")

    def _recall(self, bb: Any, env: dict[Any, Any], var: Any, kept: Any) -> None:
        """Take the results of a call that another function made from the workspace."""
        if kept is not None:
            _, kernel, _ = self.emitted[var]
            for v, spec in zip(self.plan.results(var), kernel.outputs, strict=True):
                env[v] = self._shaped(bb, self._kept(bb, kept, spec.name), v)

    def _shaped(self, bb: Any, value: Any, var: Any) -> Any:
        shape, _ = self.plan.physical_type(var)
        if shape_of(value) == shape:
            return value
        return bb.emit(relax.op.reshape(value, shape), f"{var.name}_nd")

    def _call(
        self,
        bb: Any,
        env: dict[Any, Any],
        var: Any,
        call: Any,
        emitted: Emitted,
        handle: Any,
        params: Any,
        kept: Any,
    ) -> None:
        plan = self.plan
        _, kernel, indices = emitted
        args = []
        for source, spec in zip(call.args, kernel.inputs, strict=True):
            value = env[source]
            if shape_of(value) != spec.shape:
                value = bb.emit(relax.op.reshape(value, spec.shape), f"{spec.name}_4d")
            args.append(value)
        constants = [bb.emit(relax.TupleGetItem(params, i), f"p{i}") for i in indices]
        types = [relax.TensorType(s.shape, s.dtype) for s in kernel.outputs]
        if kernel.sparse is not None:
            result = self._call_in_place(bb, kernel, args, constants, handle, params, kept)
            values = [
                bb.emit(relax.TupleGetItem(result, i), s.name) for i, s in enumerate(kernel.outputs)
            ]
        else:
            made = relax.call_tir(handle, [*args, *constants], out_ty=types)
            result = bb.emit(made, f"{kernel.name}_out")
            values = [result]
            if len(types) > 1:
                values = [
                    bb.emit(relax.TupleGetItem(result, i), v.name)
                    for i, v in enumerate(plan.results(var))
                ]
        for v, value in zip(plan.results(var), values, strict=True):
            env[v] = self._shaped(bb, value, v)

    def _call_in_place(
        self,
        bb: Any,
        kernel: FusedKernel,
        args: list[Any],
        constants: list[Any],
        handle: Any,
        params: Any,
        kept: Any,
    ) -> Any:
        """Call a sparse kernel on the workspace; its outputs are the workspace's own tensors."""
        sparse = kernel.sparse
        assert sparse is not None
        index = list(self.constants.arrays).index(THRESHOLDS)
        before = [
            *args,
            *(self._kept(bb, kept, m.name) for m in input_maps(sparse)),
            bb.emit(relax.TupleGetItem(params, index), THRESHOLDS),
            *constants,
        ]
        specs = [*kernel.outputs, *output_maps(sparse)]
        written = [self._kept(bb, kept, s.name) for s in specs]
        scratch = [self._kept(bb, kept, n) for n in (f"{kernel.name}_tiles", "list", "counts")]
        places = [len(before) + i for i in range(len(written))]
        types = [relax.TensorType(s.shape, s.dtype) for s in specs]
        call = relax.op.call_tir_inplace(handle, [*before, *written, *scratch], places, types)
        return bb.emit(call, f"{kernel.name}_out")


def _tuple_type(tensors: Iterable[Any]) -> Any:
    return relax.TupleType([relax.TensorType(t.shape, str(t.dtype)) for t in tensors])


def layer_of(func: Any) -> str | None:
    """Return the name of the linear layer in a composite function, if there is one."""
    for var, expr in Graph.of(func).bindings:
        if is_linear_layer(expr):
            return str(var.name).removeprefix("rest_").removeprefix("d_").removesuffix("_acc")
    return None
