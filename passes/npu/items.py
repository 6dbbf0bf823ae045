"""A program of an NPU as a list of items: kernels, host calls, and the tensors between them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resq_tvm.passes.graph import inputs_of, op_name
from resq_tvm.passes.kernel_spec import Thresholds, read_kernel
from resq_tvm.passes.layouts import Plan, renamed
from resq_tvm.passes.limits import CodeLimits
from resq_tvm.passes.lower import layer_of
from resq_tvm.passes.npu.choices import choose_apart, chooses_late
from resq_tvm.passes.npu.host import VIEWS
from resq_tvm.passes.npu.memory import Value
from resq_tvm.passes.npu.support import can_move, misfits
from resq_tvm.schedules.spec import FusedKernel, Sparse, TensorSpec
from resq_tvm.targets.preset import Target

if TYPE_CHECKING:
    from resq_tvm.passes.npu.cascade import Cascade


@dataclass(eq=False)
class Item:
    """One step of a program: a kernel of the NPU, or a call of the host.

    Tensors are variables of the fused program; those that only commands know have names.
    """

    var: Any
    reads: list[Any]
    results: list[Any]
    kernel: FusedKernel | None = None
    layer: str | None = None
    call: Any = None  # an operator for the host


class ProgramItems:
    """One program as items and values, before anything has a place."""

    def __init__(self, plan: Plan, target: Target, thresholds: Thresholds) -> None:
        assert target.npu is not None
        self.plan, self.npu, self.target = plan, target.npu, target
        self.name = plan.program
        self.items: list[Item] = []
        self.views: dict[Any, Any] = {}  # variable → the one whose bytes it shows
        self.maps: dict[Any, TensorSpec] = {}
        self.fine: dict[str, TensorSpec] = {}  # what kernels leave to choose from, by name
        self.bits: dict[Any, int] = {}
        self.complaints: list[str] = []
        limits = CodeLimits()
        for var, expr in plan.graph.bindings:
            if plan.composite(expr) is not None:
                self._add_kernel(var, expr, limits, thresholds)
            elif op_name(expr) in VIEWS:
                self.views[var] = expr.args[0]
            elif op_name(expr):
                reads = list(dict.fromkeys(inputs_of(expr)))
                self.items.append(Item(var, reads, plan.results(var), call=expr))
        self.values = self._values()
        self.cascades: list[Cascade] = []

    def fresh(self) -> ProgramItems:
        """Return the same items with tensors of their own, which have no places yet."""
        made = copy(self)
        made.values = {v: replace(value) for v, value in self.values.items()}
        made.cascades = []
        return made

    def root(self, var: Any) -> Any:
        """Return the variable that owns a variable's bytes."""
        while var in self.views:
            var = self.views[var]
        return var

    def _add_kernel(self, var: Any, call: Any, limits: CodeLimits, thresholds: Thresholds) -> None:
        plan = self.plan
        func, results = plan.composite(call), plan.results(var)
        reads = [self.spec(a) for a in call.args]
        taken = {s.name for s in reads}
        exports = [renamed(plan.spec(v), taken) for v in results]
        code = self.target.code
        kernel = read_kernel(call.op.name_hint, func, reads, exports, code, thresholds)
        kernel = limits.apply(kernel, list(call.args), results)
        found = misfits(kernel, self.npu)
        moved = bool(found) and can_move(kernel)
        if found and not moved:
            self.complaints.append(f"{kernel.name} ({', '.join(found)})")
        for store, v in zip(kernel.stores, results, strict=True):
            node = kernel.nodes[store.node]
            if node.op == "quantize":
                bits = node.limit.bit_length() + 1
                self.bits[v] = 8 if moved else self.npu.storage_bits(bits)
        outputs = tuple(
            replace(s, bits=self.bits.get(v, 0))
            for s, v in zip(kernel.outputs, results, strict=True)
        )
        kernel = replace(kernel, outputs=outputs)
        kernel = self._with_maps(kernel, list(call.args), results)
        layer = layer_of(func)
        if chooses_late(kernel, self.target):
            first, second = choose_apart(kernel)
            fine = {s.name: s for s in second.inputs}
            self.fine.update(fine)
            made = [
                s.name if s.name in fine else v for s, v in zip(first.outputs, results, strict=True)
            ]
            chosen = [v for v, m in zip(results, made, strict=True) if isinstance(m, str)]
            self.items.append(Item(var, list(call.args), made, first, layer))
            self.items.append(Item(second.name, list(fine), chosen, second))
            return
        item = Item(var, list(call.args), results, kernel, layer)
        item.call = call if moved else None
        self.items.append(item)

    def spec(self, var: Any) -> TensorSpec:
        """Return a variable's tensor with the bits that it takes in memory."""
        if isinstance(var, str):
            return self.fine[var]
        return replace(self.plan.spec(var), bits=self.bits.get(var, 0))

    def _with_maps(self, kernel: FusedKernel, reads: list[Any], results: list[Any]) -> FusedKernel:
        """Let a kernel read and write the maps of bits that choices make."""
        inputs = {
            s.name: self.maps[v]
            for s, v in zip(kernel.inputs, reads, strict=True)
            if v in self.maps
        }
        outputs = {}
        for store, spec, var in zip(kernel.stores, kernel.outputs, results, strict=True):
            if store.choice is not None:
                made = TensorSpec(f"{spec.name}_bits", spec.h, spec.w, 1, "uint8", 1)
                self.maps[var] = outputs[spec.name] = made
        if not inputs and not outputs:
            return kernel
        return replace(kernel, sparse=Sparse(inputs, False, outputs, 0, 0, 0, 0))

    def _values(self) -> dict[Any, Value]:
        """Return every tensor by its variable (maps by name), with its lifetime."""
        plan = self.plan
        values: dict[Any, Value] = {}
        end = len(self.items)
        for var in (*plan.frames, *plan.state_in):
            values[var] = Value(plan.spec(var), -1, end, fixed=True)
        for index, item in enumerate(self.items):
            on_npu = item.call is None
            for var in item.results:
                values[var] = Value(self.spec(var), index, index, movable=on_npu)
                if var in self.maps:
                    values[self.maps[var].name] = Value(self.maps[var], index, index)
            for var in dict.fromkeys(self.root(r) for r in item.reads):
                for value in self._with_map(values, var):
                    value.last = max(value.last, index)
                    value.readers += 1
                    value.movable = value.movable and on_npu
        for var in (*plan.outputs, *plan.state_out):
            value = values[self.root(var)]
            value.fixed, value.last = True, end
        return values

    def _with_map(self, values: dict[Any, Value], var: Any) -> list[Value]:
        found = [values[var]]
        if var in self.maps:
            found.append(values[self.maps[var].name])
        return found
