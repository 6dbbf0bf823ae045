"""From one PrimFunc of an NPU to its commands: loops are run, expressions are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx

from resq_tvm.errors import CompileError
from resq_tvm.schedules.npu.context import aligned
from resq_tvm.schedules.npu.expressions import Values, number_of
from resq_tvm.schedules.npu.hazards import Access
from resq_tvm.schedules.npu.intrinsics import ACCUMULATORS, LOAD, MATRIX, PROGRAMS, STORE, VECTOR
from resq_tvm.schedules.npu.program import from_json
from resq_tvm.targets.npu.commands import (
    Engine,
    Load,
    Matrix,
    Operand,
    Plane,
    Store,
    Vector,
    pixel_bytes,
    ring_runs,
)

if TYPE_CHECKING:
    from resq_tvm.schedules.npu.template import Recorder


@dataclass(frozen=True)
class Place:
    """Where a parameter of a kernel lies: ``"dram"`` or ``"sram"``, address, size.

    ``key`` names the tensor; None: a constant, which nobody writes.
    """

    memory: str
    address: int
    nbytes: int
    key: str | None = None


@dataclass(frozen=True)
class Base:
    """What a buffer's data variable stands for."""

    memory: str
    address: int
    key: Hashable  # of the tensor; "sram" or "acc" for tiles; None: a constant


class KernelRun:
    """Runs the loops of one kernel's PrimFunc and records its commands.

    Parameters
    ----------
    out : Recorder
        Where the commands go.
    func, number, places
        As of `resq_tvm.schedules.npu.codegen.Assembler.kernel`.
    """

    def __init__(self, out: Recorder, func: Any, number: int, places: Sequence[Place]) -> None:
        self.out, self.func, self.number = out, func, number
        self.bases: dict[Any, Base] = {
            var: Base(place.memory, place.address, place.key)
            for var, place in zip(func.params, places, strict=True)
        }
        self.programs = from_json(str(func.attrs[PROGRAMS]))
        self.statements = _sequence(func.body)
        self._prologue: list[Any] = []
        self._rows: Any = None  # the loop over bands
        self._body: Callable[[Values], None] | None = None
        self._unrolled: list[Any] = []  # or the bands
        self._flag: int | None = None  # of the commands that are written now
        self._tested: list[Access] = []  # its byte

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.func.attrs["global_symbol"])

    def buffers(self) -> Iterator[tuple[Any, str, int]]:
        """Yield every tile buffer with its memory and its size in bytes."""
        for statement in self.statements:
            if isinstance(statement, tirx.AllocBuffer):
                buffer = statement.buffer
                memory = "acc" if buffer.scope() == ACCUMULATORS else "sram"
                yield buffer, memory, aligned(int(buffer.shape[0]))

    def execute(self) -> None:
        """Run the loops."""
        for step in [self._compile(s) for s in self.statements]:
            step({})

    # Bands -----------------------------------------------------------------------------------

    def split(self, bands: int) -> None:
        """Tell the loop over bands of rows from what comes before it."""
        self._prologue = [s for s in self.statements if not isinstance(s, tirx.AllocBuffer)]
        if bands == 1:
            return
        last, tail = self._prologue[-1], self._prologue[-bands:]
        if isinstance(last, tirx.For) and int(last.extent) == bands:
            self._rows = self._prologue.pop()
        elif len(tail) == bands and all(isinstance(s, tirx.For) for s in tail):
            self._unrolled = tail
            del self._prologue[-bands:]
        else:
            raise CompileError(f"kernel {self.name} does not run in {bands} bands of rows")

    def kept(self) -> set[Any]:
        """Return the tile buffers that are loaded before the first band, for all of them."""
        if self._rows is None and not self._unrolled:
            return set()
        calls = (call for statement in self._prologue for call in _calls(statement))
        return {call.args[3].args[0] for call in calls if str(call.args[0].value) == LOAD}

    def band(self, number: int) -> None:
        """Run one band; the first one loads the constants, too."""
        if number == 0:
            for step in [self._compile(s) for s in self._prologue]:
                step({})
        if self._rows is not None:
            self._body = self._body or self._compile(self._rows.body)
            self._body({self._rows.loop_var: number})
        elif self._unrolled:
            self._compile(self._unrolled[number])({})

    # Statements ------------------------------------------------------------------------------

    def _compile(self, statement: Any) -> Callable[[Values], None]:
        if isinstance(statement, tirx.AllocBuffer):
            return lambda _values: None
        if isinstance(statement, tirx.SeqStmt):
            steps = [self._compile(s) for s in statement.seq]

            def sequence(values: Values) -> None:
                for step in steps:
                    step(values)

            return sequence
        if isinstance(statement, tirx.For):
            body, extent = self._compile(statement.body), number_of(statement.extent)
            var = statement.loop_var

            def loop(values: Values) -> None:
                for i in range(extent(values)):
                    values[var] = i
                    body(values)

            return loop
        if isinstance(statement, tirx.IfThenElse):
            return self._compile_guard(statement)
        if isinstance(statement, tirx.Evaluate):
            return self._compile_call(statement.value)
        raise CompileError(f"kernel for an NPU: no command for {type(statement).__name__}")

    def _compile_guard(self, statement: Any) -> Callable[[Values], None]:
        """Return what gives commands a flag; of nested ones the inner counts, which implies it."""
        body = self._compile(statement.then_case)
        base, offset = (self._argument(a) for a in statement.condition.args[1:])

        def guard(values: Values) -> None:
            outer = self._flag, self._tested
            self._flag = base.address + offset(values)
            self._tested = _access(base, self._flag, 1)
            body(values)
            self._flag, self._tested = outer

        return guard

    def _compile_call(self, call: Any) -> Callable[[Values], None]:
        name = str(call.args[0].value)
        args = [self._argument(a) for a in call.args[1:]]
        if name in (LOAD, STORE):
            kind = Load if name == LOAD else Store
            return lambda values: self._transfer(kind, args, values)
        if name == VECTOR:
            return lambda values: self._vector(args, values)
        weight, _, code = name.removeprefix(f"{MATRIX}w").partition("a")
        precision = (int(weight), int(code))
        return lambda values: self._matrix(precision, args, values)

    def _argument(self, expr: Any) -> Any:
        """Return a text, a base, or a function that gives a number."""
        if type(expr).__name__ == "StringImm":
            return str(expr.value)
        if type(expr).__name__ == "Call" and expr.args and expr.args[0] in self.bases:
            return self.bases[expr.args[0]]
        return number_of(expr)

    # Commands --------------------------------------------------------------------------------

    def _transfer(self, kind: type[Load] | type[Store], args: list[Any], values: Values) -> None:
        outer, offset, inner, place = args[:4]
        rows, columns, piece, dram_row, dram_column, sram_row, sram_column = (
            a(values) for a in args[4:]
        )
        if rows <= 0 or columns <= 0 or piece <= 0:
            return
        dram, sram = outer.address + offset(values), inner.address + place(values)
        far = _access(outer, dram, _reach(rows, dram_row, columns, dram_column) + piece)
        near = _access(inner, sram, _reach(rows, sram_row, columns, sram_column) + piece)
        is_load = kind is Load
        waits = self.out.hazards.command(
            Engine.LOAD if is_load else Engine.STORE,
            (far if is_load else near) + self._tested,
            near if is_load else far,
        )
        shape = (dram, sram, rows, columns, piece, dram_row, dram_column, sram_row, sram_column)
        self.out.commands.append(kind(*shape, waits, self.number, self._flag))

    def _matrix(self, precision: tuple[int, int], args: list[Any], values: Values) -> None:
        source, reads = self._plane(args[:11], values)
        base, offset = args[11], args[12]
        n = [a(values) for a in args[13:26]]
        weight_bits, h, w, out, top, left, sy, sx, ty, tx, dy, dx, depthwise = n
        weights = base.address + offset(values)
        acc_base, acc_offset, accumulate = args[26], args[27], args[28](values)
        accumulators = acc_base.address + acc_offset(values)
        bits_map = None
        if len(args) > 29:
            bits_map, more = self._plane(args[29:], values)
            reads += more
        terms = ty * tx * (1 if depthwise else source.channels)
        size = (
            -(-out * weight_bits // 8) * terms
            if depthwise
            else out * (-(-terms * weight_bits // 8))
        )
        reads += _access(base, weights, size)
        written = _access(acc_base, accumulators, h * w * out * 4)
        if accumulate:
            reads += written
        waits = self.out.hazards.command(Engine.MATRIX, reads + self._tested, written)
        self.out.commands.append(
            Matrix(
                source, weights, weight_bits, precision, h, w, out, (top, left), (sy, sx),
                (ty, tx), (dy, dx), bool(depthwise), accumulators, bool(accumulate), bits_map,
                waits, self.number, self._flag,
            )
        )  # fmt: skip

    def _plane(self, args: list[Any], values: Values) -> tuple[Plane, list[Access]]:
        base, offset, *rest = args
        h, w, first, channels, row, pixel, bits, ring, top = (a(values) for a in rest)
        address = base.address + offset(values)
        plane = Plane(address, h, w, first, channels, row, pixel, bits, ring, top)
        found = []
        if h > 0 and w > 0:
            for begin, rows in ring_runs(top, h, ring):
                found += _access(base, address + begin * row, (rows - 1) * row + w * pixel)
        return plane, found

    def _vector(self, args: list[Any], values: Values) -> None:
        number, *extents = (a(values) for a in args[:9])
        program = self.programs[number]
        h, w, c, *place = extents
        written = {s.index for s in program if s.op == "write"}
        operands, reads, writes = [], list[Access](), list[Access]()
        for index, at in enumerate(range(9, len(args), 10)):
            format, base, offset, *rest = args[at : at + 10]
            height, width, channels, row, pixel, ring, top = (a(values) for a in rest)
            address = base.address + offset(values)
            memory = base.memory
            operands.append(
                Operand(
                    memory, format, address, height, width, channels, row, pixel, ring, top
                )
            )  # fmt: skip
            if height > 0 and width > 0:
                for begin, rows in ring_runs(top, height, ring):
                    reach = _reach(rows, row, width, pixel) + pixel_bytes(channels, format)
                    found = _access(base, address + begin * row, reach)
                    (writes if index in written else reads).extend(found)
        waits = self.out.hazards.command(Engine.VECTOR, reads + self._tested, writes)
        y, x, o, window_y, window_x = place
        self.out.commands.append(
            Vector(
                self.out.intern(program), h, w, c, tuple(operands), (y, x, o),
                (window_y, window_x), waits, self.number, self._flag,
            )
        )  # fmt: skip


def _calls(statement: Any) -> Iterator[Any]:
    """Yield the intrinsics that a statement calls."""
    if isinstance(statement, tirx.For):
        yield from _calls(statement.body)
    elif isinstance(statement, tirx.IfThenElse):
        yield from _calls(statement.then_case)
    elif isinstance(statement, tirx.SeqStmt):
        for part in statement.seq:
            yield from _calls(part)
    elif isinstance(statement, tirx.Evaluate):
        yield statement.value


def _sequence(body: Any) -> list[Any]:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _reach(rows: int, row: int, columns: int, column: int) -> int:
    """Return how far the last piece lies behind the first."""
    return (rows - 1) * row + (columns - 1) * column


def _access(base: Base, address: int, size: int) -> list[Access]:
    if base.key is None or size <= 0:
        return []
    return [Access(base.key, address, address + size)]
