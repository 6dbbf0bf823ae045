"""A program of an NPU as a list of items: kernels, host calls, and the tensors between them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resq_tvm.passes.graph import inputs_of, op_name
from resq_tvm.passes.kernel_spec import Thresholds, read_kernel
from resq_tvm.passes.layouts import Plan, renamed
from resq_tvm.passes.limits import CodeLimits
from resq_tvm.passes.npu.choices import choose_apart, chooses_late
from resq_tvm.passes.npu.host import VIEWS
from resq_tvm.passes.npu.memory import Value
from resq_tvm.passes.npu.support import can_move, misfits
from resq_tvm.passes.programs import layer_of
from resq_tvm.schedules.atrest import rests_at_zero
from resq_tvm.schedules.spec import ANYTHING, FusedKernel, Sparse, TensorSpec
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
        self.frame: TensorSpec | None = None  # map of whether anything changed
        self.gated: set[Any] = set()  # tensors that are zero where nothing did
        self.complaints: list[str] = []
        limits = CodeLimits()
        found: list[Item] = []
        for var, expr in plan.graph.bindings:
            if plan.composite(expr) is not None:
                found.append(self._kernel_item(var, expr, limits, thresholds))
            elif op_name(expr) in VIEWS:
                self.views[var] = expr.args[0]
            elif op_name(expr):
                reads = list(dict.fromkeys(inputs_of(expr)))
                found.append(Item(var, reads, plan.results(var), call=expr))
        hosts = {self.root(v) for item in found if item.call is not None for v in item.reads}
        outside = {self.root(v) for v in (*plan.outputs, *plan.state_out, *self.views)}
        for item in found:
            self._add(item, hosts | outside)
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

    def _kernel_item(self, var: Any, call: Any, limits: CodeLimits, thresholds: Thresholds) -> Item:
        """Read a kernel; what it writes gets its bits."""
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
        item = Item(var, list(call.args), results, kernel, layer_of(func))
        item.call = call if moved else None
        return item

    def _add(self, item: Item, whole: set[Any]) -> None:
        """Append an item; ``whole`` are the tensors whose every pixel is read without a map."""
        if item.kernel is None or item.call is not None:
            self.items.append(item)
            return
        kernel = item.kernel = self._with_maps(item.kernel, item.reads, item.results, whole)
        if not chooses_late(kernel, self.target):
            self.items.append(item)
            return
        first, second = choose_apart(kernel)
        fine = {s.name: s for s in second.inputs}
        self.fine.update(fine)
        made = [
            s.name if s.name in fine else v
            for s, v in zip(first.outputs, item.results, strict=True)
        ]
        chosen = [v for v, m in zip(item.results, made, strict=True) if isinstance(m, str)]
        if first.sparse is not None:
            self.maps.update((n, m) for n, m in first.sparse.out_maps.items() if n in fine)
        self.items.append(Item(item.var, item.reads, made, first, item.layer))
        self.items.append(Item(second.name, list(fine), chosen, second))

    def spec(self, var: Any) -> TensorSpec:
        """Return a variable's tensor with the bits that it takes in memory."""
        if isinstance(var, str):
            return self.fine[var]
        return replace(self.plan.spec(var), bits=self.bits.get(var, 0))

    def _with_maps(
        self, kernel: FusedKernel, reads: list[Any], results: list[Any], whole: set[Any]
    ) -> FusedKernel:
        """Let a kernel read and write maps: of the bits that choices make, and of what changed."""
        inputs = {
            s.name: self.maps[v]
            for s, v in zip(kernel.inputs, reads, strict=True)
            if v in self.maps
        }
        outputs = {}
        skips = rests_at_zero(kernel, inputs) and not whole & {self.root(v) for v in results}
        for store, spec, var in zip(kernel.stores, kernel.outputs, results, strict=True):
            if store.choice is not None or skips:
                kind = "changed" if store.choice is None else "bits"
                owner = kernel.name if store.choice is None else spec.name
                made = TensorSpec(f"{owner}_{kind}", spec.h, spec.w, 1, "uint8", 1)
                self.maps[var] = outputs[spec.name] = made
        if not inputs and not outputs:
            return kernel
        self._ask_the_gate(kernel, reads, results, inputs, outputs, skips)
        return replace(kernel, sparse=Sparse(inputs, not skips, outputs, 0, 0, 0, 0))

    def _ask_the_gate(
        self,
        kernel: FusedKernel,
        reads: list[Any],
        results: list[Any],
        inputs: dict[str, TensorSpec],
        outputs: dict[str, TensorSpec],
        skips: bool,
    ) -> None:
        """Let the frame's gate tell whether anything changed, and kernels behind it ask."""
        if not skips:
            return
        if kernel.gate is not None and self.frame is None:
            self.frame = outputs[ANYTHING] = TensorSpec("anything_changed", 1, 1, 1, "uint8", 1)
            self.gated.update(results)
        elif self.frame is not None and all(v in self.gated for v in reads if v in self.maps):
            inputs[ANYTHING] = self.frame
            self.gated.update(results)

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
            if self.frame is not None and item.kernel is not None:
                self._keep_the_gates_word(values, index, item.kernel)
            for var in dict.fromkeys(self.root(r) for r in item.reads):
                for value in self._with_map(values, var):
                    value.last = max(value.last, index)
                    value.readers += 1
                    value.movable = value.movable and on_npu
        for var in (*plan.outputs, *plan.state_out):
            value = values[self.root(var)]
            value.fixed, value.last = True, end
        return values

    def _keep_the_gates_word(
        self, values: dict[Any, Value], index: int, kernel: FusedKernel
    ) -> None:
        """Let what the gate found stay in SRAM, where alone commands can ask for it."""
        assert self.frame is not None
        sparse = kernel.sparse
        if sparse is not None and ANYTHING in sparse.out_maps:
            values[self.frame.name] = Value(self.frame, index, index)
        elif sparse is not None and ANYTHING in sparse.maps:
            values[self.frame.name].last = index
            values[self.frame.name].readers += 1

    def _with_map(self, values: dict[Any, Value], var: Any) -> list[Value]:
        found = [values[var]]
        if var in self.maps:
            found.append(values[self.maps[var].name])
        return found
