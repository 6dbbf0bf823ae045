"""Writing TIR: a list of statements with nested loops, and vector loads and stores.

The nodes are made directly rather than through TVMScript's parser: kernels are unrolled in Python
to a thousand statements, and parsing those would take longer than compiling them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx

Expr = Any  # a TIR expression, or a Python number where TIR takes one


def vector_type(dtype: str, lanes: int) -> str:
    """Return the spelling of ``lanes`` × ``dtype``; one lane is a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    """Repeat a scalar expression over ``lanes``."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def constant(value: float, dtype: str, lanes: int) -> Expr:
    """Return a vector of one repeated constant."""
    return splat(tirx.const(value, dtype), lanes)


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    """Convert every lane to ``dtype``."""
    return tirx.Cast(vector_type(dtype, lanes), value)


def reinterpret(value: Expr, dtype: str, lanes: int) -> Expr:
    """Read the same bits as ``lanes`` × ``dtype``."""
    return tirx.op.reinterpret(vector_type(dtype, lanes), value)


def first_lanes(value: Expr, lanes: int) -> Expr:
    """Return the leading lanes of a 16-lane vector."""
    if lanes == 16:
        return value
    return tirx.Shuffle([value], list(range(lanes)))


def intrinsic(name: str, dtype: str, lanes: int, *args: Expr) -> Expr:
    """Call an LLVM intrinsic without side effects."""
    return tirx.op.call_llvm_pure_intrin(vector_type(dtype, lanes), name, *args)


def load(buffer: Any, index: Sequence[Expr], lanes: int) -> Expr:
    """Load ``lanes`` consecutive elements, the first of them at ``index``."""
    return tirx.BufferLoad(buffer, _span(index, lanes))


def _span(index: Sequence[Expr], lanes: int) -> list[Expr]:
    last = index[-1] if lanes == 1 else tirx.Ramp(index[-1], 1, lanes)
    return [*index[:-1], last]


def index_of(value: Expr) -> Any:
    """Return an index as an expression: a Python number becomes an int32 constant."""
    return tirx.const(value, "int32") if isinstance(value, int) else value


class Code:
    """Statements under construction; ``with code.loop(n) as i`` nests what follows."""

    def __init__(self) -> None:
        self._scopes: list[list[Any]] = [[]]
        self._count = 0
        self._imports: dict[str, None] = {}  # in order

    def _fresh(self, name: str) -> str:
        self._count += 1
        return f"{name}{self._count}"

    def bind(self, value: Expr, name: str = "t") -> Any:
        """Name a value, so that it is computed once; a Python number stays one."""
        if isinstance(value, int):
            return value
        var = tirx.Var(self._fresh(name), value.ty)
        self._scopes[-1].append(tirx.Bind(var, value))
        return var

    def hold(self, value: Expr, dtype: str, lanes: int) -> Expr:
        """Name a vector by way of the stack, where LLVM keeps it in a register.

        TVM's simplifier copies bound values into their uses, which doubles with every level of a
        tree whose nodes are used twice.
        """
        buffer = self.allocate(lanes, dtype, "h")
        self.store(buffer, [0], value, lanes)
        return load(buffer, [0], lanes)

    def store(self, buffer: Any, index: Sequence[Expr], value: Expr, lanes: int) -> None:
        """Store ``lanes`` consecutive elements, the first of them at ``index``."""
        self._scopes[-1].append(tirx.BufferStore(buffer, value, _span(index, lanes)))

    def run(self, call: Expr) -> None:
        """Evaluate an expression for what it does."""
        self._scopes[-1].append(tirx.Evaluate(call))

    def require(self, source: str) -> None:
        """Make the functions of an LLVM module known to the kernel; calls of them are inlined."""
        self._imports[source] = None

    def allocate(self, elements: int, dtype: str, name: str = "acc", scope: str = "global") -> Any:
        """Allocate a buffer: on the stack, or in a memory of the target.

        Scope ``global`` and less than 1 KiB: TVM turns that into an ``alloca``, which LLVM keeps
        in registers where all indices are constant. Scope ``local`` becomes a heap workspace.
        """
        buffer = tirx.decl_buffer((elements,), dtype, self._fresh(name), scope=scope)
        self._scopes[-1].append(tirx.AllocBuffer(buffer))
        return buffer

    @contextmanager
    def loop(self, extent: Expr, name: str = "i", parallel: bool = False) -> Iterator[Expr]:
        """Nest what follows in a loop; yields the loop variable (0 where the extent is 1)."""
        if isinstance(extent, int) and extent == 1:
            yield 0
            return
        var = tirx.Var(self._fresh(name), "int32")
        self._scopes.append([])
        yield var
        body = self._scopes.pop()
        if body:
            kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
            self._scopes[-1].append(
                tirx.For(var, tirx.const(0), index_of(extent), kind, tirx.stmt_seq(*body))
            )

    @contextmanager
    def group(self, name: str = "g") -> Iterator[None]:
        """Nest what follows in a loop that runs once: a statement of its own."""
        self._scopes.append([])
        yield
        body = self._scopes.pop()
        var, one = tirx.Var(self._fresh(name), "int32"), tirx.const(1)
        self._scopes[-1].append(
            tirx.For(var, tirx.const(0), one, tirx.ForKind.SERIAL, tirx.stmt_seq(*body))
        )

    @contextmanager
    def steady_loop(self, extent: int, name: str = "k") -> Iterator[Expr]:
        """Nest what follows in a loop that LLVM for ARM does not unroll.

        For in-order cores it unrolls by three or four, however many registers a step fills, and
        no option of TVM's turns that off. A stride that it cannot see makes the number of steps
        unknown: ``cls`` counts the sign bits of 2^29 behind the first, which is one.
        """
        if extent <= 1:
            with self.loop(extent, name) as only:
                yield only
            return
        hidden = tirx.const(1 << 29, "int32")
        stride = self.bind(intrinsic("llvm.aarch64.cls", "int32", 1, hidden), "one")
        counter = self.allocate(1, "int32", name)
        self.store(counter, [0], tirx.const(0, "int32"), 1)
        self._scopes.append([])
        position = self.bind(load(counter, [0], 1), name)
        yield position
        self.store(counter, [0], position + stride, 1)
        body = self._scopes.pop()
        more = load(counter, [0], 1) < tirx.const(extent, "int32")
        self._scopes[-1].append(tirx.While(more, tirx.stmt_seq(*body)))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Nest what follows under a condition."""
        self._scopes.append([])
        yield
        body = self._scopes.pop()
        if body:
            self._scopes[-1].append(tirx.IfThenElse(condition, tirx.stmt_seq(*body), None))

    def statement(self) -> Any:
        """Return everything as one statement."""
        (scope,) = self._scopes
        body = tirx.stmt_seq(*scope)
        for source in self._imports:
            text = tvm.ir.StringImm(source)
            body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", text, body)
        return body
