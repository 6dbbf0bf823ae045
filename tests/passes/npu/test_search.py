"""Arrangements of networks: bit-exact whatever they say, and the search keeps what is faster."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from resq_tvm.errors import CompileError, ConfigError
from resq_tvm.passes.npu.arrangement import Arrangement, Group, ProgramArrangement
from resq_tvm.passes.npu.lower import arrangements, lower_npu, read_source
from resq_tvm.passes.npu.lowering import Lowering, Source
from resq_tvm.passes.npu.moves import Moves
from resq_tvm.passes.npu.search import Search
from resq_tvm.schedules.choice import by_rules
from resq_tvm.schedules.decision import Decision
from resq_tvm.targets.npu.stream_file import to_bytes
from resq_tvm.targets.npu.timing import simulate
from resq_tvm.targets.preset import Target
from tests.graphs import annotated, frames
from tests.passes.npu.harness import SCHEMES, check_exact, network, tall_network
from tests.passes.npu.test_cascade import block
from tests.schedules.npu.harness import machine

WEIGHTS = {"keyframe": 1.0, "residual": 2.0}


def source_of(mod: Any, target: Target, state_memory: str = "auto") -> Source:
    return read_source(
        mod, target, state_dtype="float16", decide=by_rules(target), state_memory=state_memory
    )


def wander(source: Source, seed: int, steps: int) -> Arrangement:
    """Return what random changes lead to, whether or not they gain anything."""
    chosen = random.Random(seed)
    states = source.largest_state()
    found = arrangements(source, (8,))[0]
    for _ in range(steps):
        state = found.state
        if states and chosen.random() < 0.2:
            state = tuple(sorted({*(state or ())} ^ {chosen.choice(states)}))
        parts = {}
        for name in source.names:
            moves = Moves(source, name, {}, state)
            part = moves.refit(found.program(name))
            if part is not None:
                kinds: dict[str, list[Any]] = {}
                for move in moves.all(part):
                    kinds.setdefault(move.kind, []).append(move)
                move = chosen.choice(kinds[chosen.choice(sorted(kinds))])
                parts[name] = moves.apply(part, move) or part
        tried = Arrangement(parts, state)
        try:
            Lowering(source, tried).run()
        except CompileError:
            continue
        found = tried
    return found


@pytest.mark.parametrize("seed", [2, 3, 7, 9, 26, 31])
def test_any_arrangement_computes_the_same_bits(seed):
    mod = annotated(tall_network(seed, 10), SCHEMES[seed % len(SCHEMES)])
    target = machine(sram=(32_000, 48_000)[seed % 2], accumulators=(2000, 4000)[seed % 2])
    found = wander(source_of(mod, target), seed, 12)
    assert found != Arrangement()
    device = check_exact(
        mod, target, frames(mod, 2, seed), state_dtype="float16", cascades="auto",
        find=lambda _key: Arrangement.from_json(json.loads(json.dumps(found.to_json()))),
    )  # fmt: skip
    assert "heuristic" not in {r.origin for r in device.lowered.kernels.values()}


def test_a_part_of_the_state_stays_on_the_chip():
    target = machine(sram=1 << 15)
    mod = annotated(network(block, (1, 40, 16, 3)), "W8A8->W4A4")
    plain = lower_npu(mod, target, state_dtype="float16").stream
    assert {p.memory for p in plain.programs["keyframe"].state} == {"dram"}
    found = Arrangement(state=(1,))
    device = check_exact(
        mod, target, frames(mod, 3), state_dtype="float16", cascades="auto", find=lambda _k: found
    )
    assert [p.memory for p in device.state()].count("sram") == 1
    before, after = (simulate(target.npu, s, "residual") for s in (plain, device.lowered.stream))
    assert after.state_read < before.state_read


def test_state_and_groups_that_do_not_fit_are_named():
    target = machine(sram=1 << 15)
    source = source_of(annotated(network(block, (1, 64, 32, 3)), "W8A8->W4A4"), target)
    with pytest.raises(CompileError, match=r"state takes .* bytes"):
        Lowering(source, Arrangement(state=tuple(source.largest_state())))
    behind = len(source.programs[0].items)
    for groups in (
        [Group(0, 3, 64, 3)], [Group(behind - 1, behind, 1, 0)], [Group(2, 2, 1, 0)],
        [Group(0, 2, 1, 0), Group(2, 3, 1, 0)],
    ):  # fmt: skip
        last = groups[-1]
        wrong = f"items {last.first} to {last.last} of program keyframe do not fit"
        with pytest.raises(CompileError, match=wrong):
            Lowering(source, Arrangement({"keyframe": ProgramArrangement(tuple(groups))})).run()


def test_kernels_written_before_are_placed_anew():
    target = machine(sram=1 << 15)
    mod = annotated(network(block, (1, 64, 32, 3)), "W8A8->W4A4")
    source = source_of(mod, target)
    plans = [Arrangement(), *arrangements(source, (16, 4))]
    for plan in (*plans, *plans):
        fresh = Lowering(source_of(mod, target), as_of(plan)).run()
        assert to_bytes(Lowering(source, plan).run().stream) == to_bytes(fresh.stream)


def as_of(plan: Arrangement) -> Arrangement:
    return Arrangement.from_json(plan.to_json())


def test_the_search_finds_something_faster_and_goes_on_where_it_stopped():
    target = machine(sram=1 << 15)
    mod = annotated(network(block, (1, 64, 32, 3)), "W8A8->W4A4")
    noted: dict[Any, int] = {}
    kept: list[tuple[Arrangement, dict[str, int]]] = []

    def search(trials: int, known: dict[Any, int], *former: Arrangement) -> Search:
        source = source_of(mod, target)
        made = Search(
            source, WEIGHTS, {}, known,
            note=lambda trial, cycles: noted.update({trial: cycles}),
            improved=lambda found, cycles: kept.append((found, dict(cycles))),
        )  # fmt: skip
        made.run([Arrangement(), *former, *arrangements(source, (16, 4))], trials)
        return made

    first = search(60, {})
    assert first.trials == len(noted) <= 60
    assert all(first.cycles[n] < first.first[n] for n in first.cycles)
    best, cycles = kept[-1]
    assert cycles == first.cycles
    stream = lower_npu(
        mod, target, state_dtype="float16", cascades="auto", find=lambda _key: best
    ).stream
    assert {n: simulate(target.npu, stream, n).cycles for n in cycles} == cycles
    again = search(0, dict(noted), best)
    assert again.trials == 0 and again.cycles == first.cycles
    more = search(40, dict(noted), best)
    assert 0 < more.trials <= 40
    assert sum(more.cycles[n] * w for n, w in WEIGHTS.items()) <= sum(
        first.cycles[n] * w for n, w in WEIGHTS.items()
    )


def test_networks_that_differ_in_numbers_alone_share_a_key():
    target = machine()
    keys = []
    for seed, scheme in ((3, "W8A8->W4A4"), (3, "W8A8->W4A4"), (3, "W8A8->W2A2"), (4, "W8A8")):
        mod = annotated(tall_network(seed, 6), scheme)
        keys.append(source_of(mod, target).key)
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_arrangements_are_written_and_read():
    tile = Decision("network", "matrix", 2, 8, 1, inner_o=True, parallel=False)
    part = ProgramArrangement((Group(0, 3, 4, 1), Group(5, 6, 2, 0)), {4: tile}, 4096)
    found = Arrangement({"keyframe": part}, (0, 2))
    assert as_of(found) == found and as_of(found).key == found.key
    for broken in ({}, {**found.to_json(), "format_version": 9}, {**found.to_json(), "state": 3}):
        with pytest.raises(ConfigError, match="arrangement of a network cannot be read"):
            Arrangement.from_json(broken)
