"""Add a program ``frame(x…, params) -> ((y…), ())``: every frame on its own, without state.

A keyframe of a residual scheme writes state, which costs up to half of its time, and continues
from the rounded state. Where residuals do not pay, a session runs ``frame`` instead: the same
network frame-quantized, from the same scales. It is lowered by itself, with parameters of its own
order, and then joined to the residual scheme's programs; kernels and parameters that both have are
kept once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.passes.fuse import FuseKernels
from resq_tvm.passes.lower import Lowered, lower
from resq_tvm.passes.partition.keyframe import Keyframe
from resq_tvm.passes.partition.program import Settings
from resq_tvm.passes.programs import KernelRecord
from resq_tvm.schedules.choice import Decider
from resq_tvm.targets.preset import Target

FRAME = "frame"


@dataclass(frozen=True, eq=False)
class Joined:
    """All programs, and the names of the parameters that ``frame`` takes, in order."""

    lowered: Lowered
    frame_params: tuple[str, ...]


def lower_frame(mod: tvm.IRModule, target: Target, decide: Decider | None = None) -> Lowered:
    """Lower the keyframe program of a calibrated module without its state.

    Parameters
    ----------
    mod : IRModule
        Canonical ``main`` with `resq.layers` and `resq.scales`.
    target : Target
    decide : callable, optional
        Takes the decision about every kernel; the target's rules by default.

    Returns
    -------
    Lowered
        One program, named ``keyframe`` as in frame quantization.
    """
    # Without state nothing is rounded to it: its dtype does not matter.
    function = Keyframe(Settings(mod["main"], "float32", False), []).build()
    alone = tvm.IRModule({"keyframe": function.with_attr("global_symbol", "keyframe")})
    fuse: Any = FuseKernels()
    return lower(fuse(alone), target, decide)


def join(lowered: Lowered, frame: Lowered) -> Joined:
    """Add the program of `lower_frame` to a residual scheme's programs as ``frame``."""
    params = dict(lowered.params)
    taken = _share(params, frame.params)
    module = _with_parameters(lowered.module, params)
    names = _kernels(module, frame)
    calls = _Renamed(module, frame.module, names)
    program = calls.visit_expr(frame.module["keyframe"])
    module = calls.builder_.finalize()
    module[FRAME] = program.with_attr("global_symbol", FRAME)
    order = list(params)
    records = {
        f"{FRAME}_{_stem(old)}": _record(record, names[old], [order.index(n) for n in taken])
        for old, record in frame.kernels.items()
    }
    return Joined(
        replace(
            lowered,
            module=module,
            params=params,
            kernels={**lowered.kernels, **records},
            opaque={**lowered.opaque, FRAME: frame.opaque["keyframe"]},
        ),
        tuple(taken),
    )


def _stem(name: str) -> str:
    return name.removeprefix("keyframe_")


def _share(params: dict[str, NDArray[Any]], more: Mapping[str, NDArray[Any]]) -> list[str]:
    """Add parameters that are new; return the names under which all of ``more`` are found."""
    known = {_digest(array): name for name, array in params.items()}
    taken = []
    for name, array in more.items():
        found = known.get(_digest(array))
        if found is None:
            found = f"{FRAME}.{_stem(name)}"
            params[found] = array
        taken.append(found)
    return taken


def _digest(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest()


def _kernels(module: tvm.IRModule, frame: Lowered) -> dict[str, str]:
    """Return under which name each kernel of ``frame`` is found: an equal one's, or its own."""
    known = {gv.name_hint: func for gv, func in module.functions_items()}
    names = {}
    for gv, func in frame.module.functions_items():
        name = gv.name_hint
        if not isinstance(func, tvm.tirx.PrimFunc):
            continue
        twin = known.get(name)
        same = twin is not None and tvm_ffi.structural_equal(twin, func)
        names[name] = name if same else f"{FRAME}_{_stem(name)}"
    return names


def _record(record: KernelRecord, name: str, places: list[int]) -> KernelRecord:
    kernel = replace(record.kernel, name=name)
    params = tuple(places[i] for i in record.params)
    return replace(record, program=FRAME, kernel=kernel, params=params)


def _with_parameters(module: tvm.IRModule, params: Mapping[str, NDArray[Any]]) -> tvm.IRModule:
    """Let all programs take the whole parameter tuple, which got longer at its end."""
    longer = relax.TupleType([relax.TensorType(a.shape, str(a.dtype)) for a in params.values()])
    functions = dict(module.functions_items())
    for handle, func in functions.items():
        if not isinstance(func, relax.Function):
            continue
        *others, old = func.params
        new = relax.Var(old.name, longer)
        body = _Replaced(old, new).visit_expr(func.body)
        functions[handle] = relax.Function(
            [*others, new], body, func.ret_ty, func.is_pure, func.attrs
        )
    return tvm.IRModule(functions)


@relax.expr_functor.mutator
class _Replaced(relax.PyExprMutator):
    """Replace one variable."""

    def __init__(self, old: Any, new: Any) -> None:
        super().__init__()
        self.old, self.new = old, new

    def visit_var_(self, op: Any) -> Any:
        """Return the new variable for the old one."""
        return self.new if op.same_as(self.old) else op


@relax.expr_functor.mutator
class _Renamed(relax.PyExprMutator):
    """Let a function call kernels of ``module``, to which those that it lacks are added."""

    def __init__(
        self, module: tvm.IRModule, source: tvm.IRModule, names: Mapping[str, str]
    ) -> None:
        super().__init__(module)
        present = {gv.name_hint: gv for gv in module.get_global_vars()}
        self.handles = {}
        for old, new in names.items():
            if new not in present:
                function = source[old].with_attr("global_symbol", new)
                present[new] = self.builder_.add_func(function, new)
            self.handles[old] = present[new]

    def visit_global_var_(self, op: Any) -> Any:
        """Return the handle of the kernel's new name."""
        return self.handles.get(op.name_hint, op)
