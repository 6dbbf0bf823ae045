"""Small changes of a program's arrangement, for `resq_tvm.passes.npu.search` to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resq_tvm.errors import CompileError
from resq_tvm.passes.npu.arrangement import Arrangement, Group, ProgramArrangement
from resq_tvm.passes.npu.cascade import Planner
from resq_tvm.passes.npu.lowering import Source
from resq_tvm.schedules.context import ceil_div
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.npu.rules import decide_npu
from resq_tvm.schedules.spec import Conv, FusedKernel

ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
AHEAD: Final = (1, 0, 2, 3)
SHIFTS: Final = (-1, 1, -2, 2, -4, 4)
SHARES: Final = (1, 2, 3, 4, 5, 6)  # eighths of the SRAM that may be for tiles


@dataclass(frozen=True)
class Move:
    """A change of what an item takes part in.

    Attributes
    ----------
    kind : str
        ``"bands"``: other bands of its group; ``"begin"``, ``"end"``: its group begins or ends
        elsewhere, and so does the group beside it; ``"split"``: its group ends before it, and a new
        one begins there; ``"join"``: its group and the next become one; ``"drop"``: the group is
        no more; ``"pair"``: it takes turns with the next item, neither of which did; ``"tile"``;
        ``"share"``: SRAM for tiles.
    item : int
    rows, ahead, shift : int
    tile : Decision, optional
    """

    kind: str
    item: int = 0
    rows: int = 0
    ahead: int = 0
    shift: int = 0
    tile: Decision | None = None

    @property
    def rank(self) -> int:
        """When to try it: changes of whole groups come before those of a single kernel."""
        if self.kind == "share":
            return 0
        if self.kind == "bands":
            return 1 if self.rows in (1, 2, 4, 8, 16) and self.ahead < 2 else 3
        return 3 if self.kind == "tile" else 2


class Moves:
    """Changes of one program's arrangement.

    Parameters
    ----------
    source : Source
    name : str
        The program's.
    options : mapping
        Kernel → tiles that are fast when it runs by itself.
    state : tuple of int, optional
        State that stays in SRAM.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        options: Mapping[str, Sequence[Decision]],
        state: tuple[int, ...] | None,
    ) -> None:
        self.source, self.name, self.options, self.state = source, name, options, state
        self.items = next(p for p in source.programs if p.name == name).items

    def all(self, part: ProgramArrangement) -> Iterator[Move]:
        """Yield the changes of an arrangement."""
        for group in part.groups:
            yield from (Move("bands", group.first, r, a) for r in ROWS for a in AHEAD)
            for shift in SHIFTS:
                yield Move("begin", group.first, shift=shift)
                yield Move("end", group.first, shift=shift)
            yield from (Move("split", item) for item in range(group.first + 1, group.last + 1))
            yield Move("join", group.first)
            yield Move("drop", group.first)
        inside = {i for g in part.groups for i in range(g.first, g.last + 1)}
        for number, item in enumerate(self.items):
            if item.kernel is None or item.call is not None:
                continue
            if number not in inside and number + 1 not in inside:
                yield Move("pair", number)
            tiles = self._columns(item.kernel) if number in inside else self._alone(item.kernel)
            yield from (Move("tile", number, tile=t) for t in tiles)
        yield from (Move("share", shift=s) for s in SHARES)

    def apply(self, part: ProgramArrangement, move: Move) -> ProgramArrangement | None:
        """Return the changed arrangement; None if there is nothing to change, or it cannot be."""
        if move.kind == "share":
            return self._share(part, move.shift)
        if move.kind == "tile":
            assert move.tile is not None
            return replace(part, tiles={**part.tiles, move.item: move.tile})
        if move.kind == "pair":
            if any(g.first <= i <= g.last for g in part.groups for i in (move.item, move.item + 1)):
                return None
            return self._changed(part, [], [Group(move.item, move.item + 1, 8, 1)])
        at = next((n for n, g in enumerate(part.groups) if g.first <= move.item <= g.last), None)
        if at is None:
            return None
        group = part.groups[at]
        if move.kind == "bands":
            new = replace(group, rows=move.rows, ahead=move.ahead)
            return None if new == group else self._changed(part, [group], [new], exact=True)
        if move.kind == "drop":
            return self._changed(part, [group], [])
        if move.kind == "split":
            pieces = [replace(group, last=move.item - 1), replace(group, first=move.item)]
            return self._changed(part, [group], pieces)
        if move.kind == "join":
            if at + 1 == len(part.groups):
                return None
            behind = part.groups[at + 1]
            return self._changed(part, [group, behind], [replace(group, last=behind.last)])
        return self._shifted(part, at, move)

    def _shifted(self, part: ProgramArrangement, at: int, move: Move) -> ProgramArrangement | None:
        """Return an arrangement in which a group begins or ends elsewhere."""
        group, groups = part.groups[at], part.groups
        if move.kind == "begin":
            edge = group.first + move.shift
            others = [g for g in groups[:at] if g.last >= edge or g.last == group.first - 1]
            made = [replace(group, first=edge)]
            made += [replace(g, last=min(g.last if move.shift < 0 else edge - 1, edge - 1))
                     for g in others]  # fmt: skip
        else:
            edge = group.last + move.shift
            others = [g for g in groups[at + 1 :] if g.first <= edge or g.first == group.last + 1]
            made = [replace(group, last=edge)]
            made += [replace(g, first=max(g.first if move.shift > 0 else edge + 1, edge + 1))
                     for g in others]  # fmt: skip
        if edge < 0 or edge >= len(self.items) or made[0].first > made[0].last:
            return None
        return self._changed(part, [group, *others], made)

    def _changed(
        self,
        part: ProgramArrangement,
        old: Sequence[Group],
        new: Sequence[Group],
        exact: bool = False,
    ) -> ProgramArrangement | None:
        """Return an arrangement with other groups, in smaller bands where they do not fit."""
        planner = self._planner(part)
        kept = [g for g in part.groups if g not in old]
        before = {i for g in old for i in range(g.first, g.last + 1)}
        after = {i for g in new for i in range(g.first, g.last + 1)}
        # Tiles of what no longer takes turns, or now does, were chosen for something else.
        tiles = {i: t for i, t in part.tiles.items() if i not in before ^ after}
        for group in new:
            if group.first >= group.last:
                continue
            found = (
                (group if planner.banded(group, tiles) is not None else None)
                if exact
                else _fitted(planner, group, tiles)
            )
            if found is None:
                return None
            kept.append(found)
        return replace(part, groups=tuple(sorted(kept)), tiles=tiles)

    def _share(self, part: ProgramArrangement, eighths: int) -> ProgramArrangement | None:
        """Return the arrangement with another part of the SRAM for tiles."""
        npu = self.source.target.npu
        assert npu is not None
        return self.refit(replace(part, tile_bytes=npu.sram.bytes * eighths // 8 // 64 * 64))

    def refit(self, part: ProgramArrangement) -> ProgramArrangement | None:
        """Return the arrangement in bands that fit; None if its state does not."""
        try:
            planner = self._planner(part)
        except CompileError:
            return None
        groups = [_fitted(planner, g, part.tiles) for g in part.groups]
        return replace(part, groups=tuple(g for g in groups if g is not None))

    def _planner(self, part: ProgramArrangement) -> Planner:
        return self.source.planner(self.name, Arrangement({self.name: part}, self.state))

    # Tiles -----------------------------------------------------------------------------------

    def _columns(self, kernel: FusedKernel) -> Iterator[Decision]:
        """Yield tiles of a kernel in a group: other columns and channels."""
        if not isinstance(kernel.anchor, Conv):
            return
        npu = self.source.target.npu
        assert npu is not None
        blocks = ceil_div(kernel.c, npu.matrix.outputs)
        for tile_o in {min(blocks, n) for n in (1, 2, 4, 8)}:
            for parts in (1, 2):
                yield Decision(
                    "bands", "matrix", 1, ceil_div(kernel.w, parts), tile_o, inner_o=True,
                    parallel=False,
                )  # fmt: skip

    def _alone(self, kernel: FusedKernel) -> Iterator[Decision]:
        """Yield tiles of a kernel that runs on its own."""
        if not isinstance(kernel.anchor, Conv):
            return
        base = decide_npu(kernel, self.source.target)
        found = [*self.options.get(kernel.name, ())]
        found += [replace(base, rule="network", tile_y=max(1, ceil_div(base.tile_y * n, 2)))
                  for n in (1, 4)]  # fmt: skip
        found += [replace(base, rule="network", tile_o=n) for n in (1, 2, 4, 8)]
        found += [replace(base, rule="network", inner_o=not base.inner_o)]
        yield from dict.fromkeys(found)


def _fitted(planner: Planner, group: Group, tiles: Mapping[int, Decision]) -> Group | None:
    """Return the group, in smaller bands if it does not fit as it is; None if in none."""
    sizes = [r for r in reversed(ROWS) if r < group.rows]
    for ahead in dict.fromkeys((group.ahead, 0)):
        for rows in (group.rows, *sizes):
            made = replace(group, rows=rows, ahead=ahead)
            if planner.banded(made, tiles) is not None:
                return made
    return None
