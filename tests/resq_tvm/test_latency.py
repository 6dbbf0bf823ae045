"""Milliseconds from shares of active tiles: the line itself, and one network that is timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.compiler import compile as compile_network
from resq_tvm.errors import ConfigError
from resq_tvm.evaluate.measures import float_outputs, output_error
from resq_tvm.latency import FrameProfile, all_or_nothing, layer_cost, measure, noise, touched
from resq_tvm.programs import Programs
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.thresholds import fit_thresholds
from tests.dynamic import dynamic, qnet, small_network
from tests.graphs import annotated, frames

PROFILE = FrameProfile(2.0, {"a": 3.0, "b": 1.0}, others=0.5)
SHARES = st.fixed_dictionaries({"a": st.floats(0, 1), "b": st.floats(0, 1), "c": st.floats(0, 1)})


def test_nothing_and_all() -> None:
    layers = ("a", "b", "c")
    assert PROFILE.cost(dict.fromkeys(layers, 0.0)) == 2.0
    assert PROFILE.cost(dict.fromkeys(layers, 1.0)) == 6.5
    assert PROFILE.cost({"a": 0.5, "b": 1.0, "c": 0.0}) == pytest.approx(2 + 1.5 + 1 + 0.25)


@given(low=SHARES, high=SHARES, part=st.floats(0, 1))
def test_cost_is_a_line_that_rises(
    low: dict[str, float], high: dict[str, float], part: float
) -> None:
    between = {name: low[name] + part * (high[name] - low[name]) for name in low}
    ends = PROFILE.cost(low), PROFILE.cost(high)
    assert PROFILE.cost(between) == pytest.approx(ends[0] + part * (ends[1] - ends[0]))
    most = {name: max(low[name], high[name]) for name in low}
    assert PROFILE.cost(most) >= max(ends) - 1e-9


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    return dynamic(small_network(), tau=0.5, threshold=1e3).with_tile_budget(0.1)


def test_thresholds_scaled_to_0_keep_everything_and_1_drops_it(
    network: QuantizedNetwork, tmp_path: Path
) -> None:
    extreme = all_or_nothing(network)
    artifact = compile_network(extreme, output=tmp_path / "t.resq", frame_program=False)
    (key,), (other,) = noise(network)
    maps = [e.name for e in artifact.manifest.workspace if e.name.endswith("_changed")]
    computed = []
    for scale, frame in ((0.0, other), (1.0, touched((key,))[0])):
        programs = Programs(artifact, scale)
        programs.keyframe([tvm.runtime.tensor(key)])
        programs.residual([tvm.runtime.tensor(frame)])
        assert programs.counts is not None
        computed.append(int(programs.counts[:, 0].sum()))
        assert all(programs.tensor(name).all() for name in maps) == (scale == 0)
    assert maps and 0 < computed[1] < 0.1 * computed[0]  # of the gate alone
    profile = measure(artifact, ((key,), (other,)), 1)
    assert set(profile.layers) == {"first", "second"} and profile.fixed > 0
    nothing, whole = (profile.cost(dict.fromkeys(network.layers, s)) for s in (0.0, 1.0))
    assert nothing == profile.fixed < whole


def test_a_fit_keeps_milliseconds(network: QuantizedNetwork) -> None:
    cost = layer_cost(network, threads=1, state_dtype="float32")
    nothing, whole = (cost(dict.fromkeys(network.layers, s)) for s in (0.0, 1.0))
    clip = frames(network.module, 5, 3)
    error = output_error(float_outputs(network.network, clip))
    limit = (nothing + whole) / 2
    loose = network.with_tile_budget(None)
    fitted, report = fit_thresholds(
        loose, [clip], error=error, budget=f"{limit:.6f} ms", cost=cost, state_dtype="float32"
    )
    assert report.cost <= limit < report.static_cost
    assert fitted.dynamic is not None
    assert any(choice["tau"] > 0 for choice in fitted.dynamic["choices"].values())
    with pytest.raises(ConfigError, match=rf"1e-05 ms cannot be kept.* costs {nothing:.3g} ms"):
        fit_thresholds(loose, [clip], error=error, budget="1e-5 ms", cost=cost)


def test_a_scheme_without_a_pool_is_refused() -> None:
    static = qnet(annotated(small_network(), "W8A8->W8A8"), "W8A8->W8A8")
    with pytest.raises(ConfigError, match=r"'W8A8->W8A8' computes every tile .* use a pool"):
        layer_cost(static)
