"""The decision that a rule takes for one kernel: small, frozen, printable, and replayable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from resq_tvm.errors import CompileError
from resq_tvm.schedules.typed import read_fields


@dataclass(frozen=True)
class Decision:
    """How one kernel is tiled.

    Attributes
    ----------
    rule : str
        Name of the rule that decided, for reports.
    method : str
        What is emitted: ``"dot"`` (a dense convolution), ``"quads"`` (depthwise, four rows at a
        time), ``"taps"`` (depthwise, tap by tap), ``"lanes"`` (everything else).
    tile_y, tile_x : int
        Output pixels whose accumulators are in registers together.
    tile_o : int
        Vectors of 16 output channels in registers together.
    inner_o : bool
        Whether channel blocks are the innermost loop (weights stay in the first cache level and
        every pixel is visited once) or the outermost.
    parallel : bool
        Whether the outermost loop runs on the thread pool.
    prefetch : int
        How many tiles ahead the tensors that the epilogue reads and writes are fetched into the
        first cache levels; 0: left to the processor. Kernels that leave out tiles fetch the next
        one in their list, with what the anchor reads, if it is not 0.
    gather : bool
        Whether a kernel that leaves out tiles gathers pixels that changed, wherever they are, until
        they fill one.
    coarse : str
        The method of tiles whose pixels all have few bits (`resq_tvm.schedules.spec.Coarse`), where
        it pays to have another; else empty.
    """

    rule: str
    method: str
    tile_y: int = 1
    tile_x: int = 1
    tile_o: int = 1
    inner_o: bool = False
    parallel: bool = True
    prefetch: int = 0
    gather: bool = False
    coarse: str = ""

    def __str__(self) -> str:
        tile = f"{self.tile_y}x{self.tile_x}x{self.tile_o}"
        inner = " inner-o" if self.inner_o else ""
        ahead = f" prefetch-{self.prefetch}" if self.prefetch else ""
        gathered = " gathered" if self.gather else ""
        few = f" few-bits-{self.coarse}" if self.coarse else ""
        parallel = " parallel" if self.parallel else ""
        return f"{self.rule} {tile}{gathered}{inner}{ahead}{few}{parallel}"

    def difference(self, other: Decision) -> str:
        """Return what ``other`` decides otherwise, such as ``tile_x 4 -> 8``."""
        mine, theirs = asdict(self), asdict(other)
        changes = [
            f"{name} {mine[name]} -> {theirs[name]}"
            for name in mine
            if name != "rule" and mine[name] != theirs[name]
        ]
        return ", ".join(changes) or "the same"

    def to_json(self) -> str:
        """Return the decision as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Decision:
        """Read what `to_json` wrote.

        Raises
        ------
        CompileError
            If the text is not a decision.
        """
        try:
            decision = read_fields(cls, text)
        except (TypeError, ValueError) as error:
            raise CompileError(
                f"decision {text!r} cannot be read ({error}); write one with Decision.to_json"
            ) from None
        if min(decision.tile_y, decision.tile_x, decision.tile_o) < 1:
            raise CompileError(f"decision {text!r} has an empty tile; tiles are 1 or more")
        if decision.prefetch < 0:
            raise CompileError(f"decision {text!r} prefetches backwards; use 0 or more tiles")
        return decision
