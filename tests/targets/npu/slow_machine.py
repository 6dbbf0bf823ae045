"""The cycle model once more, cycle by cycle: what the fast one is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from resq_tvm.targets.npu.commands import Engine, Waits

TRANSFERS = (Engine.LOAD, Engine.STORE)


@dataclass
class Item:
    """A command, and what became of it (−1: not yet)."""

    engine: Engine
    duration: int
    waits: Waits
    cost: int
    issued: int = -1
    started: int = -1
    free: int = -1
    ended: int = -1


@dataclass
class SlowMachine:
    """Steps through every cycle."""

    items: list[Item]
    queue_depth: int
    setup: int
    latency: int
    left: dict[Engine, int] = field(default_factory=dict)
    turn: Engine | None = None  # who has the next cycle of a bus that both want

    def run(self) -> bool:
        """Run; return whether every command ended."""
        position, processor_free, now, idle = 0, 0, 0, 0
        patience = sum(i.duration + i.cost for i in self.items) * 2 + 100
        patience += len(self.items) * (self.setup + self.latency)
        while any(i.ended < 0 or i.ended > now for i in self.items) and idle <= patience:
            idle += 1
            changed = True
            while changed:
                changed = False
                if position < len(self.items):
                    item = self.items[position]
                    waiting = [
                        i for i in self.items[:position]
                        if i.engine == item.engine and not 0 <= i.started <= now
                    ]  # fmt: skip
                    if now >= processor_free + item.cost and len(waiting) < self.queue_depth:
                        item.issued = processor_free = now
                        position += 1
                        changed = True
                for engine in Engine:
                    changed |= self._engine(engine, now)
            self._bus(now)
            now += 1
        return all(i.ended >= 0 for i in self.items)

    def _engine(self, engine: Engine, now: int) -> bool:
        own = [i for i in self.items if i.engine == engine]
        for item in own:
            if item.started >= 0:
                if item.free < 0 and self._wants(item, now) and self.left[engine] == 0:
                    item.free, item.ended = now, now + self.latency
                    return True
                if item.free < 0 or item.free > now:
                    return False
                continue
            if item.issued < 0 or not all(self._fulfilled(w, now) for w in item.waits):
                return False
            item.started = now
            if engine in TRANSFERS:
                self.left[engine] = item.duration
            else:
                item.free = item.ended = now + item.duration
            return True
        return False

    def _fulfilled(self, wait: tuple[Engine, int], now: int) -> bool:
        engine, count = wait
        return sum(i.engine == engine and 0 <= i.ended <= now for i in self.items) >= count

    def _wants(self, item: Item, now: int) -> bool:
        return item.started + self.setup <= now

    def _bus(self, now: int) -> None:
        """Give the cycle that begins now to one of those that want it."""
        wanting = [
            i for i in self.items
            if i.engine in TRANSFERS and i.started >= 0 and i.free < 0 and self._wants(i, now)
        ]  # fmt: skip
        if not wanting:
            return
        if len(wanting) == 1:
            self.turn = None
            self.left[wanting[0].engine] -= 1
            return
        if self.turn is None:
            self.turn = min(wanting, key=lambda i: (i.started, i.engine)).engine
        self.left[self.turn] -= 1
        self.turn = Engine.STORE if self.turn == Engine.LOAD else Engine.LOAD
