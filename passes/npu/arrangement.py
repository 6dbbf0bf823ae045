"""How a network is arranged on an NPU: which kernels take turns, which tiles they take, what stays.

An arrangement is small and says nothing that could be computed again: `resq_tvm.passes.npu.search`
finds one, the tuning database keeps it, and compiling follows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from resq_tvm.errors import CompileError, ConfigError
from resq_tvm.passes.graph import op_name
from resq_tvm.passes.npu.items import ProgramItems
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.signature import digest, signature

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, order=True)
class Group:
    """Items ``first`` to ``last`` of a program take turns.

    Attributes
    ----------
    first, last : int
    rows : int
        Of a band of the item with the most rows; the others' are as large a part of their planes.
    ahead : int
        How many bands more than it reads a band finds written.
    """

    first: int
    last: int
    rows: int
    ahead: int


@dataclass(frozen=True)
class ProgramArrangement:
    """One program's part of an arrangement.

    Attributes
    ----------
    groups : tuple of Group
        In order; they do not overlap.
    tiles : dict of int to Decision
        Item → its tiles; in a group their columns and channels count, at most. Other items have the
        tiles that the rules or records say.
    tile_bytes : int
        Bytes of the SRAM for tiles; 0: as many as the rule says.
    """

    groups: tuple[Group, ...] = ()
    tiles: Mapping[int, Decision] = field(default_factory=dict)
    tile_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "groups": [asdict(g) for g in self.groups],
            "tiles": {str(i): asdict(d) for i, d in sorted(self.tiles.items())},
            "tile_bytes": self.tile_bytes,
        }


@dataclass(frozen=True)
class Arrangement:
    """How a network is arranged.

    Attributes
    ----------
    programs : dict of str to ProgramArrangement
        By name; a program that is missing has nothing decided.
    state : tuple of int, optional
        Numbers of the state tensors that stay in SRAM; None: as ``state_memory`` says.
    """

    programs: Mapping[str, ProgramArrangement] = field(default_factory=dict)
    state: tuple[int, ...] | None = None

    def program(self, name: str) -> ProgramArrangement:
        """Return a program's part."""
        return self.programs.get(name, ProgramArrangement())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "state": None if self.state is None else list(self.state),
            "programs": {n: p.to_json() for n, p in sorted(self.programs.items())},
        }

    @property
    def key(self) -> str:
        """A short name that equal arrangements share."""
        return digest(json.dumps(self.to_json(), sort_keys=True))

    @classmethod
    def from_json(cls, data: Any) -> Arrangement:
        """Read what `to_json` wrote.

        Raises
        ------
        ConfigError
            If it is not an arrangement of this format.
        """
        try:
            if data["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {data['format_version']} is not {FORMAT_VERSION}")
            programs = {
                str(name): ProgramArrangement(
                    tuple(Group(**{k: int(v) for k, v in g.items()}) for g in part["groups"]),
                    {int(i): Decision.from_json(json.dumps(d)) for i, d in part["tiles"].items()},
                    int(part["tile_bytes"]),
                )
                for name, part in data["programs"].items()
            }
            state = None if data["state"] is None else tuple(int(n) for n in data["state"])
            return cls(programs, state)
        except (LookupError, TypeError, ValueError, AttributeError, CompileError) as error:
            raise ConfigError(
                f"arrangement of a network cannot be read ({error}); tune the network again"
            ) from None


def network_key(programs: Iterable[ProgramItems], state_memory: str) -> str:
    """Return what networks share that an arrangement fits as well: all but their numbers.

    Parameters
    ----------
    programs : iterable of ProgramItems
    state_memory : str
        As of `resq_tvm.passes.npu.lower.lower_npu`.
    """
    found = hashlib.sha256(state_memory.encode())
    for program in programs:
        numbers: dict[Any, int] = {}

        def number(var: Any, of: ProgramItems = program, known: dict[Any, int] = numbers) -> int:
            return known.setdefault(of.root(var), len(known))

        plan = program.plan
        outside = [[number(v) for v in side] for side in (plan.frames, plan.state_in)]
        items = [
            (
                f"host {op_name(item.call)}" if item.kernel is None else signature(item.kernel),
                item.call is not None,
                [number(v) for v in item.reads],
                [number(v) for v in item.results],
            )
            for item in program.items
        ]
        results = [[number(v) for v in side] for side in (plan.outputs, plan.state_out)]
        found.update(json.dumps([program.name, outside, items, results]).encode())
    return found.hexdigest()[:16]
