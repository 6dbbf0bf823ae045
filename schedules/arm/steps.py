"""The order of loads and products along a run.

Out-of-order cores start loads early by themselves. In-order cores wait for every load that comes
too late, so that there each half of a loop's body loads what the other half multiplies, between the
products: two sets of registers take turns, and nothing is moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from resq_tvm.schedules.arm.runs import CHUNK
from resq_tvm.schedules.arm.scheme import Scheme
from resq_tvm.schedules.code import Code, Expr, load

# A chunk's number, how many of its bytes count, its first channel → int8x16 per pixel.
Activations = Callable[[Expr, int, Expr], list[Expr]]
_AHEAD = 2  # vectors of weights that are loaded before they are needed
Weight = Callable[[Expr, int], Expr]  # a chunk's and a vector's number → int8x16


class Steps:
    """Emits products of chunks.

    Parameters
    ----------
    code : Code
    scheme : Scheme
    state
        The scheme's accumulators.
    activations, weight : callable
        Load the operands.
    """

    def __init__(
        self, code: Code, scheme: Scheme, state: Any, activations: Activations, weight: Weight
    ) -> None:
        self.code, self.scheme, self.state = code, scheme, state
        self.activations, self.weight = activations, weight

    def fetch(self, chunk: Expr) -> None:
        """Prefetch a chunk's weights."""
        address = tirx.op.address_of(self.weight(chunk, 0))
        number = [tirx.const(n, "int32") for n in (0, 3, 1)]  # to read, first level, data
        self.code.run(tirx.op.call_llvm_intrin("void", "llvm.prefetch", address, *number))

    def single(self, chunk: int, size: int, offset: Expr) -> None:
        """Multiply one chunk, whole or short, whose first channel is ``offset``."""
        code, scheme = self.code, self.scheme
        pixels = [code.bind(a, "a") for a in self.activations(chunk, size, offset)]
        for v in range(scheme.needed(size)):
            w = code.bind(self.weight(chunk, v), "w")
            scheme.multiply(code, self.state, v, [w], [pixels], size)

    def plain(self, start: Expr, count: int, channel: Expr) -> None:
        """Multiply ``count`` times ``unit`` chunks from chunk ``start``: loads, then products."""
        code, scheme = self.code, self.scheme
        with code.loop(count, "k") as k:
            chunks = [start + k * scheme.unit + u for u in range(scheme.unit)]
            pixels = [
                [code.bind(a, "a") for a in self.activations(c, CHUNK, channel + c * CHUNK)]
                for c in chunks
            ]
            for v in range(scheme.vectors):
                ws = [code.bind(self.weight(c, v), "w") for c in chunks]
                scheme.multiply(code, self.state, v, ws, pixels, CHUNK)

    def ahead(self, start: Expr, count: int, channel: Expr) -> None:
        """Do what `plain` does, with the loads of a step between the products of the one before."""
        if count < 2:
            self.plain(start, count, channel)
            return
        code, unit = self.code, self.scheme.unit

        def chunks(step: Expr) -> list[Expr]:
            return [start + step * unit + u for u in range(unit)]

        def loads(step: Expr) -> list[Expr]:
            return [
                a for c in chunks(step) for a in self.activations(c, CHUNK, channel + c * CHUNK)
            ]

        ahead = min(_AHEAD, self.scheme.vectors)
        held = [self._held(a) for a in loads(0)]
        held_weights = [self._held(w) for v in range(ahead) for w in self._weights(chunks(0), v)]
        with code.steady_loop(count // 2) as k:
            here = [load(a, [0], CHUNK) for a in held]
            weights = [load(w, [0], CHUNK) for w in held_weights]
            # The last step has no next one: it is loaded once more.
            after: Expr = 2 * k + 2
            after = (
                min(after, count - 1)
                if isinstance(after, int)
                else tirx.Min(after, tirx.const(count - 1, "int32"))
            )
            there, weights = self._half(
                chunks(2 * k), chunks(2 * k + 1), here, weights, loads(2 * k + 1)
            )
            here, weights = self._half(
                chunks(2 * k + 1), chunks(after), there, weights, loads(after)
            )
            for buffer, new in zip(held + held_weights, here + weights, strict=True):
                code.store(buffer, [0], new, CHUNK)
            # Behind something that may write, LLVM leaves the loads where they are.
            self.fetch(chunks(after + 1)[0])
        if count % 2:
            last = [load(a, [0], CHUNK) for a in held]
            weights = [load(w, [0], CHUNK) for w in held_weights]
            self._half(chunks(count - 1), None, last, weights, [])

    def _held(self, value: Expr) -> Any:
        buffer = self.code.allocate(CHUNK, "int8", "held")
        self.code.store(buffer, [0], value, CHUNK)
        return buffer

    def _weights(self, chunks: list[Expr], vector: int) -> list[Expr]:
        return [self.weight(c, vector) for c in chunks]

    def _half(
        self,
        chunks: list[Expr],
        following: list[Expr] | None,
        pixels: list[Expr],
        weights: list[Expr],
        loads: list[Expr],
    ) -> tuple[list[Expr], list[Expr]]:
        """Multiply the chunks of a step, loading what the following one needs in between.

        Parameters
        ----------
        following : list or None
            The next step's chunks, if there is one.
        pixels, weights : list
            The step's activations, and its first vectors of weights.
        loads : list
            The next step's activations.

        Returns
        -------
        pixels, weights : list
            Of the next step, in registers.
        """
        code, scheme = self.code, self.scheme
        per = len(pixels) // len(chunks)
        grouped = [pixels[u * per : (u + 1) * per] for u in range(len(chunks))]
        ready = [weights[i : i + len(chunks)] for i in range(0, len(weights), len(chunks))]
        ahead = len(ready)
        kept: list[Expr] = []
        for v in range(scheme.vectors):
            upcoming = v + ahead
            if upcoming < scheme.vectors:
                ready.append([code.bind(w, "w") for w in self._weights(chunks, upcoming)])
            elif following is not None:
                vector = upcoming - scheme.vectors
                ready.append([code.bind(w, "w") for w in self._weights(following, vector)])
            scheme.multiply(code, self.state, v, ready[v], grouped, CHUNK)
            # All of them early enough for the first products of the next step.
            until = len(loads) * (v + 1) // max(1, scheme.vectors - 1)
            kept += [code.bind(a, "a") for a in loads[len(kept) : until]]
        return kept, [w for group in ready[scheme.vectors :] for w in group]
