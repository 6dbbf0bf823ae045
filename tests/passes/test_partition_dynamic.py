"""The partition with pools of bits: invariants on random networks, and where calls are put."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resq_tvm.passes.graph import Graph, concat_pieces, op_name
from resq_tvm.passes.partition import Partition
from resq_tvm.reference.executor import Executor
from tests.graphs import annotated, frames, random_network, with_policy

SEEDS = st.integers(0, 10**6)
QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def run(func: Any, *arrays: Any) -> Any:
    with torch.no_grad():
        return Executor(func)(*[torch.as_tensor(a) for a in arrays])


def residual_after_key(mod: tvm.IRModule, dtype: str, key: Any, frame: Any) -> tuple[Any, Any]:
    programs = Partition(dtype)(mod)
    outputs, state = run(programs["keyframe"], key)
    return outputs, run(programs["residual"], frame, *state)[0]


@QUICK
@given(
    seed=SEEDS,
    pool=st.sampled_from(["0,8", "0,4,8", "4,8", "0,2,4"]),
    dtype=st.sampled_from(["float32", "float16"]),
    tau=st.sampled_from([0.0, 0.05, 1.0]),
    threshold=st.sampled_from([0.0, 20.0, 1e9]),
)
def test_residual_of_the_keyframe_is_the_keyframe(
    seed: int, pool: str, dtype: str, tau: float, threshold: float
) -> None:
    gate = {"scale": 0.02, "threshold": threshold, "block": 4, "reach": 1}
    mod = with_policy(annotated(random_network(seed), f"W8A8->W8A{{{pool}}}"), tau, gate)
    key = frames(mod, 1, seed)[0]
    wanted, again = residual_after_key(mod, dtype, key, key)
    for got, want in zip(again, wanted, strict=True):
        assert torch.equal(got, want)


@QUICK
@given(seed=SEEDS, dtype=st.sampled_from(["float32", "float16"]), gated=st.booleans())
def test_with_tau_0_and_open_gates_it_is_the_static_residual(
    seed: int, dtype: str, gated: bool
) -> None:
    gate = {"scale": 1e-6, "threshold": 0.0, "block": 8, "reach": 1} if gated else None
    network = random_network(seed)
    dynamic = with_policy(annotated(network, "W8A8->W8A{0,8}"), 0.0, gate)
    static = annotated(network, "W8A8->W8A8")
    key, frame = frames(static, 2, seed)
    _, wanted = residual_after_key(static, dtype, key, frame)
    _, results = residual_after_key(dynamic, dtype, key, frame)
    for got, want in zip(results, wanted, strict=True):
        assert torch.equal(got, want)


@QUICK
@given(seed=SEEDS)
def test_a_shut_gate_and_an_endless_tau_hold_the_keyframe(seed: int) -> None:
    for tau, threshold in ((0.0, 1e30), (1e30, 0.0)):
        gate = {"scale": 0.02, "threshold": threshold, "block": 4, "reach": 1}
        mod = with_policy(annotated(random_network(seed), "W8A8->W8A{0,4,8}"), tau, gate)
        key, frame = frames(mod, 2, seed)
        programs = Partition()(mod)
        graph = Graph.of(programs["residual"])
        if tau == 0 and not any(op_name(e) == "resq.gate" for _, e in graph.bindings):
            continue  # the input is not state: no difference to it is taken
        wanted, state = run(programs["keyframe"], key)
        seen: dict[str, torch.Tensor] = {}
        residual = Executor(programs["residual"], observe=seen.__setitem__)
        results, _ = residual(torch.as_tensor(frame), *state)
        sums = [seen[v.name] for v, _ in graph.layers()]
        assert sums and all(not s.any() for s in sums)
        if tau == 0:  # with an endless tau, a path around all layers still follows the frame
            for got, want in zip(results, wanted, strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize("seed", range(12))
def test_every_piece_that_a_layer_reads_chooses_for_itself(seed: int) -> None:
    mod = with_policy(annotated(random_network(seed), "W8A8->W8A{0,4,8}"), 0.1)
    programs = Partition()(mod)
    graph = Graph.of(programs["residual"])
    sources = Graph.of(mod["main"])
    pairs = list(zip(sources.layers(), graph.layers(), strict=True))
    for (layer, call), (_, quantized) in pairs:
        pieces = concat_pieces(call.args[0], sources.producers)
        codes = concat_pieces(quantized.args[0], graph.producers)
        assert len(pieces) == len(codes), layer.name
        for piece, code in zip(pieces, codes, strict=True):
            assert op_name(graph.producers[code]) == "resq.choose"
            assert code.name.startswith(f"d_{piece.name}_q0_4_8")
    assert all(op_name(e) != "resq.choose" for _, e in Graph.of(programs["keyframe"]).bindings)
