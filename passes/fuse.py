"""Fuse a program into composite functions, one per kernel.

Requires the quantized form that `Partition` makes. Afterwards ``keyframe`` and ``residual`` call
private functions with the attribute ``Composite`` (``resq.conv``, ``resq.pool``, …, ``resq.walk``);
what remains outside are the *opaque* operators (softmax, reshape, …) that TVM lowers itself.

A group is one *anchor* (a layer, a pooling, a resize, …; or none) and the elementwise operators
behind it. Groups are ordered by creation; an elementwise operator joins the latest group that it
reads, so a group reads only from earlier groups and running them in order is right. Operators that
read nothing but parameters *float*: they are recomputed inside every group that reads them, and
get a group of their own only where an anchor or an output needs them. Concatenations of codes
belong to the layer that reads them and are never materialised. A layer that reads two codes is one
group with two anchors (`resq_tvm.passes.two_codes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax

from resq_tvm.passes.graph import (
    Graph,
    imm_value,
    inputs_of,
    is_const,
    map_variables,
    op_name,
    recall,
    shape_of,
)
from resq_tvm.passes.operators import ELEMENTWISE
from resq_tvm.passes.policy import CHOOSE, GATE
from resq_tvm.passes.two_codes import first_products

ANCHORS = {
    "relax.nn.conv2d": "resq.conv",
    "relax.nn.conv2d_transpose": "resq.conv",
    "relax.matmul": "resq.conv",
    "relax.nn.max_pool2d": "resq.pool",
    "relax.nn.avg_pool2d": "resq.pool",
    "relax.mean": "resq.mean",
    "relax.image.resize2d": "resq.resize",
    "relax.strided_slice": "resq.window",
    "relax.nn.pad": "resq.window",
}
_ELEMENTWISE = ELEMENTWISE | {"relax.quantize", "relax.dequantize", "relax.astype", CHOOSE}


def plane_of(expr: Any) -> tuple[int, int, int]:
    """Return a batch-1 tensor's shape as (h, w, c); lower ranks are rows of channels."""
    shape = shape_of(expr)
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    if len(shape) <= 1:
        return 1, 1, shape[0] if shape else 1
    rows = 1
    for d in shape[1:-1]:
        rows *= d
    return 1, rows, shape[-1]


@dataclass
class _Group:
    kind: str
    plane: tuple[int, int, int]
    members: list[Any] = field(default_factory=list)  # source variables, in order


@dataclass(frozen=True)
class _Composite:
    """A private function; ``reads`` and ``exports`` are variables of the program."""

    name: str
    func: Any
    reads: list[Any]
    exports: list[Any]


@tvm.transform.module_pass(opt_level=0, name="FuseKernels")
class FuseKernels:
    """Turn the bindings of ``keyframe`` and ``residual`` into calls of composite functions.

    Parameters
    ----------
    apart : set of str
        Elementwise operators that the target lacks: they stay opaque.
    together : bool
        Whether layers that read two codes become one kernel.
    """

    def __init__(self, apart: frozenset[str] = frozenset(), together: bool = True) -> None:
        self.apart, self.together = apart, together

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return a module with the two programs fused; other functions are dropped."""
        out = tvm.IRModule()
        for name in ("keyframe", "residual"):
            if name in [g.name_hint for g in mod.get_global_vars()]:
                _Fuser(name, mod[name], self.apart, self.together).into(out)
        return out


class _Fuser:
    def __init__(self, program: str, func: Any, apart: frozenset[str], together: bool) -> None:
        self.program, self.apart = program, apart
        self.graph = Graph.of(func)
        self.producers = self.graph.producers
        self.before = first_products(self.graph) if together else {}
        self.waiting = {v for members in self.before.values() for v in members}
        self.groups: list[_Group | Any] = []  # a _Group, or the variable of an opaque operator
        self.home: dict[Any, int] = {}  # variable → index in groups
        self.floating: set[Any] = set()
        self.virtual: set[Any] = set()  # concatenations of codes
        self.walks: dict[tuple[int, int, int], int] = {}

    def into(self, out: tvm.IRModule) -> None:
        """Add the fused program and its composites to ``out``."""
        for var, call in self.graph.bindings:
            if op_name(call):
                self.place(var, call)
        outputs = self._leaves()
        for leaf in outputs:
            if leaf in self.floating:
                self.settle(leaf)
            elif leaf not in self.home:
                self._copy(leaf)
        self._write(out)

    def _leaves(self) -> list[Any]:
        body = self.graph.result
        return [x for f in body.fields for x in (f.fields if isinstance(f, relax.Tuple) else [f])]

    def place(self, var: Any, call: Any) -> None:
        """Assign one operator to a group."""
        if var in self.waiting:  # for the layer's other code
            return
        name = op_name(call)
        before = self.before.get(var, [])
        layers = [self.producers[v] for v in before[:1]] + [call]
        reads = list(dict.fromkeys(v for layer in layers for v in inputs_of(layer)))
        if name == "relax.concat" and str(var.ty.dtype) == "int8":
            self.virtual.add(var)
            for v in reads:
                self._materialise(v)
        elif name == GATE:
            group = _Group("resq.gate", plane_of(var))
            self.groups.append(group)
            self._pull(group, len(self.groups) - 1, var)
        elif self._is_elementwise(var, call, reads):
            if all(self._is_floating(v) for v in reads):
                self.floating.add(var)
            else:
                self._join(var, reads)
        else:
            for v in reads:
                self._materialise(v)
            members = [*before, var]
            self.home.update(dict.fromkeys(members, len(self.groups)))
            anchored = name in ANCHORS and self._fits(var, call)
            self.groups.append(_Group(ANCHORS[name], plane_of(var), members) if anchored else var)

    def _fits(self, var: Any, call: Any) -> bool:
        if op_name(call) == "relax.mean":
            axes = sorted(int(a) % 4 for a in call.attrs.axis)
            return len(shape_of(call.args[0])) == 4 and axes == [1, 2]
        if op_name(call) == "relax.matmul":
            return is_const(call.args[1])
        if op_name(call) == "relax.strided_slice" and not _is_affine(call):
            return False
        return len(shape_of(var)) == 4

    def _is_elementwise(self, var: Any, call: Any, reads: list[Any]) -> bool:
        if op_name(call) not in _ELEMENTWISE or op_name(call) in self.apart:
            return False
        h, w, c = plane_of(var)
        return all(plane_of(v) in ((h, w, c), (1, 1, c), (1, 1, 1)) for v in reads)

    def _is_floating(self, var: Any) -> bool:
        return var in self.floating or (var not in self.producers)

    def _join(self, var: Any, reads: list[Any]) -> None:
        latest = max(self.home[v] for v in reads if v in self.home)
        group = self.groups[latest]
        if not isinstance(group, _Group) or group.plane != plane_of(var):
            latest = len(self.groups)
            group = _Group("resq.walk", plane_of(var))
            self.groups.append(group)
        self._pull(group, latest, var)

    def _pull(self, group: _Group, index: int, var: Any) -> None:
        """Append ``var`` and, before it, the floating operators that it reads."""
        self._pull_floating(group, var)
        group.members.append(var)
        self.home[var] = index

    def _pull_floating(self, group: _Group, var: Any) -> None:
        for v in inputs_of(self.producers[var]):
            if v in self.floating and v not in group.members and v not in self.home:
                self._pull_floating(group, v)
                group.members.append(v)

    def _materialise(self, var: Any) -> None:
        if var in self.floating:
            self.settle(var)

    def settle(self, var: Any) -> None:
        """Give a floating operator a home: the walk over its plane."""
        plane = plane_of(var)
        if plane not in self.walks:
            self.walks[plane] = len(self.groups)
            self.groups.append(_Group("resq.walk", plane))
        index = self.walks[plane]
        group = self.groups[index]
        self._pull_floating(group, var)
        if var not in group.members:
            group.members.append(var)
        self.home[var] = index
        self.floating.discard(var)

    def _copy(self, param: Any) -> None:
        """Copy a frame that is returned (as state): callers own what they pass in."""
        frames = self.graph.func.params[: int(self.graph.func.attrs["num_input"])]
        if param in frames:
            self.home[param] = len(self.groups)
            self.groups.append(_Group("resq.walk", plane_of(param), [param]))

    # Writing ---------------------------------------------------------------------------------

    def _write(self, out: tvm.IRModule) -> None:
        needed = self._exports()
        bb = relax.BlockBuilder()
        params = [relax.Var(p.name, p.ty) for p in self.graph.func.params]
        env: dict[Any, Any] = dict(zip(self.graph.func.params, params, strict=True))
        copies: dict[Any, Any] = {}
        kernels = {
            i: self._composite(g, needed[i])
            for i, g in enumerate(self.groups)
            if isinstance(g, _Group)
        }
        handles = {i: bb.add_func(k.func, k.name) for i, k in kernels.items()}
        with bb.function(self.program, params):
            with bb.dataflow():
                for i, group in enumerate(self.groups):
                    if not isinstance(group, _Group):
                        call = self.producers[group]
                        env[group] = bb.emit(recall(call, env.__getitem__), group.name)
                        continue
                    kernel = kernels[i]
                    several = len(kernel.exports) > 1
                    name = f"{kernel.name}_out" if several else kernel.exports[0].name
                    result = bb.emit(relax.Call(handles[i], [env[v] for v in kernel.reads]), name)
                    for k, v in enumerate(kernel.exports):
                        value = (
                            bb.emit(relax.TupleGetItem(result, k), v.name) if several else result
                        )
                        (copies if v in self.graph.func.params else env)[v] = value
                renamed = {**env, **copies}
                result = bb.emit_output(map_variables(self.graph.result, renamed.__getitem__))
            bb.emit_func_output(result)
        for gv, func in bb.finalize().functions_items():
            attrs = self.graph.func.attrs if gv.name_hint == self.program else {}
            out[gv] = func.with_attrs(dict(attrs)) if attrs else func

    def _exports(self) -> list[list[Any]]:
        """Group index → members that something outside the group reads."""
        used: list[set[Any]] = [set() for _ in self.groups]

        def use(var: Any, reader: int | None) -> None:
            if var in self.virtual:
                for v in inputs_of(self.producers[var]):
                    use(v, reader)
            elif var in self.home and self.home[var] != reader:
                used[self.home[var]].add(var)

        for index, group in enumerate(self.groups):
            for member in group.members if isinstance(group, _Group) else [group]:
                if member in self.graph.func.params:
                    continue
                for v in inputs_of(self.producers[member]):
                    if v not in (group.members if isinstance(group, _Group) else ()):
                        use(v, index)
        for leaf in self._leaves():
            use(leaf, None)
        return [
            [m for m in g.members if m in used[i]] if isinstance(g, _Group) else []
            for i, g in enumerate(self.groups)
        ]

    def _composite(self, group: _Group, exports: list[Any]) -> _Composite:
        """Make the private function of a group."""
        reads: list[Any] = []
        for member in group.members:
            sources = [member] if member in self.graph.func.params else []
            sources += inputs_of(self.producers[member]) if not sources else []
            for v in sources:
                pieces = inputs_of(self.producers[v]) if v in self.virtual else [v]
                for p in pieces:
                    local = p in group.members and p not in self.graph.func.params
                    if not local and p not in reads:
                        reads.append(p)
        name = f"{self.program}_{exports[0].name if exports else group.members[0].name}"
        bb = relax.BlockBuilder()
        params = [relax.Var(v.name, v.ty) for v in reads]
        env = dict(zip(reads, params, strict=True))
        attrs = {"Composite": group.kind}
        if "resq.deltas" in self.graph.func.attrs:
            attrs["resq.name"] = name  # equal functions become one, but keep outputs of their own
        with bb.function(name, params, attrs=attrs, private=True):
            with bb.dataflow():
                for member in group.members:
                    if member in self.graph.func.params:
                        continue
                    call = self.producers[member]
                    for v in inputs_of(call):
                        if v in self.virtual and v not in env:
                            env[v] = bb.emit(recall(self.producers[v], env.__getitem__), v.name)
                    env[member] = bb.emit(recall(call, env.__getitem__), member.name)
                values = [env[v] for v in exports]
                result = bb.emit_output(values[0] if len(values) == 1 else relax.Tuple(values))
            bb.emit_func_output(result)
        func = next(iter(bb.finalize().functions.values()))
        return _Composite(name, func, reads, exports)


def _is_affine(call: Any) -> bool:
    """Whether a slice walks forwards, and channel by channel."""
    steps = [int(imm_value(s)) for s in call.args[4].fields] if len(call.args) > 4 else []
    axes = [int(imm_value(a)) % 4 for a in call.args[1].fields]
    return all(s > 0 and (a != 3 or s == 1) for a, s in zip(axes, steps, strict=False))
