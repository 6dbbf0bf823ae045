"""Hold an artifact's kernels against the reference executor, layer by layer and end to end.

Every kernel of the built library runs on the artifact's own inputs (the outputs of the kernels
before it) beside the reference executor on the same inputs: that is the check per layer. A second
chain runs the reference alone from the frame on: the share of codes in which the chains differ is
the end-to-end figure.

Kernels of a residual program that chooses bits write only what changed. They run on a workspace
that is kept from frame to frame, and what lies there is compared at every pixel, written or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.runtime.vm import VirtualMachine

from resq_tvm.errors import TargetError
from resq_tvm.passes.graph import Graph, inputs_of, op_name, recall
from resq_tvm.passes.npu.lowering import LoweredNpu
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.reference.executor import Executor
from resq_tvm.schedules.meaning import is_exact
from resq_tvm.schedules.spec import CodeFormat, TensorSpec
from resq_tvm.workspace import StreamWorkspace

if TYPE_CHECKING:
    from resq_tvm.compiler import Compiled


@dataclass
class KernelCheck:
    """What was seen of one kernel over all frames."""

    name: str
    layer: str | None
    exact: bool  # integer anchor and only IEEE operations: nothing may differ
    values: int = 0
    differing: int = 0  # given the artifact's own inputs
    largest: float = 0.0  # largest absolute difference, given the artifact's own inputs
    codes: int = 0
    codes_differing: int = 0  # end to end


@dataclass
class VerifyReport:
    """All kernels, and the outputs of the library's programs beside the chain of kernels.

    ``outputs_differing`` counts values of the programs' outputs that the chain of kernels gave
    otherwise; it must be 0 where no operator runs outside the kernels.
    """

    kernels: dict[str, KernelCheck] = field(default_factory=dict)
    outputs: int = 0
    outputs_differing: int = 0

    @property
    def failures(self) -> list[str]:
        """Kernels that must agree exactly with the reference and do not."""
        return [k.name for k in self.kernels.values() if k.exact and k.differing]

    @property
    def differing_share(self) -> float:
        """Share of activation codes that differ end to end."""
        codes = sum(k.codes for k in self.kernels.values())
        return sum(k.codes_differing for k in self.kernels.values()) / max(codes, 1)


def pack(array: NDArray[Any], spec: TensorSpec, code: CodeFormat) -> NDArray[Any]:
    """Return the physical tensor of a logical array (codes as int8)."""
    is_code = array.dtype == np.int8
    physical = np.full(spec.shape, code.zero_point if is_code else 0, spec.dtype)
    value = array.reshape(spec.h, spec.w, spec.c)
    if is_code:
        value = value.astype(np.int16) + code.zero_point
    _inner(physical, spec)[...] = value
    return physical


def unpack(physical: NDArray[Any], spec: TensorSpec, code: CodeFormat) -> NDArray[Any]:
    """Return the logical values ``(h, w, c)`` of a physical tensor, codes as int8."""
    value = _inner(physical, spec)
    if spec.dtype == code.dtype:
        return (value.astype(np.int16) - code.zero_point).astype(np.int8)
    return value.copy()


def _inner(physical: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    top, left, _, _ = spec.halo
    return physical[0, top : top + spec.h, left : left + spec.w, : spec.c]


def verify(
    compiled: Compiled, frames: Iterable[NDArray[np.float32]], period: int | None = None
) -> VerifyReport:
    """Run keyframes and residual frames through kernels and reference side by side.

    Parameters
    ----------
    compiled : Compiled
        What `resq_tvm.compiler.build` returned.
    frames : iterable of ndarray
        Canonical (NHWC) frames of a network with one input; the first is a keyframe.
    period : int, optional
        A keyframe every so many frames; by default the first alone.

    Raises
    ------
    TargetError
        If it is compiled for an NPU.
    """
    if isinstance(compiled.lowered, LoweredNpu):
        raise TargetError(
            "kernels of an NPU do not run on this CPU; hold an artifact's session against "
            "resq_tvm.reference.session.ReferenceSession"
        )
    report = VerifyReport()
    chains = _Chains(compiled, report)
    state: Any = None
    for n, frame in enumerate(frames):
        due = state is None or (period is not None and n % period == 0)
        program = "keyframe" if due else "residual"
        if program == "residual" and "residual" not in chains.programs:
            program = "keyframe"
        state = chains.run(program, frame, state if program == "residual" else None)
    return report


class _Chains:
    def __init__(self, compiled: Compiled, report: VerifyReport) -> None:
        self.lowered = compiled.lowered
        self.report = report
        self.library = compiled.executable.jit().imports[0]
        self.constants = {n: tvm.runtime.tensor(a) for n, a in compiled.params.items()}
        self.programs = {
            g.name_hint: f
            for g, f in self.lowered.fused.functions_items()
            if g.name_hint in ("keyframe", "residual")
        }
        self.references: dict[str, Executor] = {}
        self.machine = VirtualMachine(compiled.executable, tvm.cpu())
        self.machine_state: Any = None
        # One is the chain's, the other the library's own programs'.
        kept = self.lowered.workspace
        self.kept, self.machine_kept = (StreamWorkspace(kept) if kept else None for _ in range(2))

    def run(self, program: str, frame: NDArray[np.float32], state: Any) -> Any:
        """Run one frame; return ((artifact's state, reference's state) per tensor)."""
        func = self.programs[program]
        graph = Graph.of(func)
        params = list(func.params)
        env: dict[Any, Any] = {params[0]: (frame, frame)}
        env |= dict(zip(params[1:], state or [], strict=True))
        for var, expr in graph.bindings:
            if isinstance(expr, relax.TupleGetItem):
                env[var] = env[expr.tuple_value][int(expr.index)]
            elif op_name(expr):
                arguments = inputs_of(expr)
                env[var] = tuple(
                    _evaluate(var, expr, arguments, [env[a][side] for a in arguments])
                    for side in (0, 1)
                )
            elif isinstance(expr, relax.Call):
                pairs = self._kernel(expr, [env[a] for a in expr.args])
                env[var] = pairs if isinstance(var.ty, relax.TupleType) else pairs[0]
        outputs, state_out = graph.result.fields
        self._compare_outputs(program, frame, [env[v][0] for v in outputs.fields])
        return [env[v] for v in state_out.fields]

    def _compare_outputs(
        self, program: str, frame: NDArray[np.float32], chain: list[NDArray[Any]]
    ) -> None:
        """Run the library's own program and compare its outputs with the chain's."""
        results = self._machine(program, tvm.runtime.tensor(np.ascontiguousarray(frame)))
        if program == "keyframe" and self.kept is not None:
            self.kept.keyframe(chain)
        for got, want in zip(results, chain, strict=True):
            self.report.outputs += want.size
            differing = np.count_nonzero(got.numpy().reshape(-1) != want.reshape(-1))
            self.report.outputs_differing += int(differing)

    def _machine(self, program: str, frame: Any) -> Any:
        constants, kept = list(self.constants.values()), self.machine_kept
        if program == "keyframe":
            results, self.machine_state = self.machine[program](frame, constants)
            if kept is not None:
                kept.keyframe([r.numpy() for r in results])
            return results
        if kept is None:
            results, self.machine_state = self.machine[program](
                frame, self.machine_state, constants
            )
            return results
        arguments = [frame, self.machine_state, kept.tensors, constants]
        if self.machine.module.implements_function("probe"):
            self.machine["probe"](*arguments)
        results, _ = self.machine[program](*arguments)
        return results

    def _kernel(self, call: Any, arguments: list[Any]) -> list[Any]:
        name = call.op.name_hint
        record = self.lowered.kernels[name]
        func = self.lowered.fused[call.op]
        if name not in self.references:
            self.references[name] = Executor(func)
        own = self._launch(record, [a[0] for a in arguments])
        types = [v.ty for v in Graph.of(func).outputs()]
        own = [a.reshape([int(d) for d in t.shape]) for a, t in zip(own, types, strict=True)]
        expected = _reference(self.references[name], [a[0] for a in arguments])
        alone = _reference(self.references[name], [a[1] for a in arguments])
        check = self.report.kernels.setdefault(
            name, KernelCheck(name, record.layer, is_exact(record.kernel))
        )
        for got, want, other in zip(own, expected, alone, strict=True):
            check.values += got.size
            check.differing += int(np.count_nonzero(got != want))
            gap = np.abs(got.astype(np.float64) - want.astype(np.float64))
            check.largest = max(check.largest, float(gap.max(initial=0)))
            if got.dtype == np.int8:
                check.codes += got.size
                check.codes_differing += int(np.count_nonzero(got != other))
        return list(zip(own, alone, strict=True))

    def _launch(self, record: KernelRecord, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        kernel, code = record.kernel, record.kernel.code
        inputs = [
            tvm.runtime.tensor(pack(a, s, code)) for a, s in zip(arrays, kernel.inputs, strict=True)
        ]
        if kernel.sparse is not None:
            assert self.kept is not None
            results = self.kept.launch(self.library, record, inputs, self.constants)
        else:
            outputs = [tvm.runtime.tensor(np.zeros(s.shape, s.dtype)) for s in kernel.outputs]
            constants = list(self.constants.values())
            self.library[kernel.name](*inputs, *(constants[i] for i in record.params), *outputs)
            results = [t.numpy() for t in outputs]
        return [unpack(a, s, code) for a, s in zip(results, kernel.outputs, strict=True)]


def _reference(executor: Executor, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    with torch.no_grad():
        result = executor(*[torch.from_numpy(np.ascontiguousarray(a)) for a in arrays])
    values = result if isinstance(result, tuple | list) else [result]
    return [v.numpy() for v in values]


def _evaluate(var: Any, call: Any, variables: list[Any], arrays: list[Any]) -> NDArray[Any]:
    """Evaluate an opaque operator with the reference executor."""
    bb = relax.BlockBuilder()
    params = [relax.Var(v.name, v.ty) for v in variables]
    with bb.function("main", params):
        with bb.dataflow():
            env = dict(zip(variables, params, strict=True))
            out = bb.emit_output(recall(call, env.__getitem__))
        bb.emit_func_output(out)
    return _reference(Executor(bb.finalize()["main"]), arrays)[0]
