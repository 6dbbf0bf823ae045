"""Thresholds fitted to budgets on a small network: kept, monotone, honest about what was run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import resq_tvm as resq
from resq_tvm.errors import CalibrationError, ConfigError
from resq_tvm.evaluate.measures import float_outputs, output_error
from resq_tvm.passes.partition.program import Settings
from resq_tvm.quantize.groups import UNREAD, choice_groups
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.samples import read_clip
from resq_tvm.quantize.search import Search
from resq_tvm.quantize.thresholds import fit_thresholds
from resq_tvm.quantize.trials import Thresholds, Trials
from resq_tvm.reference.session import ReferenceSession
from tests.resq_tvm.quantize.networks import moving_clip, small_network

SCHEME = "W8A8->W8A{0,8}"


def busy_clip(count: int) -> list[NDArray[np.float32]]:
    """Noise everywhere, and one corner that really moves."""
    frames = moving_clip(count, speed=0.01)
    drift = np.random.default_rng(1).standard_normal((count, 1, 3, 4, 4)).cumsum(0) * 0.3
    for frame, move in zip(frames, drift, strict=True):
        frame[..., :4, :4] += move.astype(np.float32)
    return frames


@pytest.fixture(scope="module")
def clip() -> list[NDArray[np.float32]]:
    return busy_clip(12)


@pytest.fixture(scope="module")
def qnet(clip: list[NDArray[np.float32]]) -> QuantizedNetwork:
    return resq.calibrate(small_network(), [clip], SCHEME, period=4, candidates=8)


@pytest.fixture(scope="module")
def error(clip: list[NDArray[np.float32]]) -> Any:
    return output_error(float_outputs(small_network(), clip))


def test_error_budget(qnet: QuantizedNetwork, clip: Any, error: Any) -> None:
    lines: list[str] = []
    fitted, report = resq.fit_thresholds(
        qnet, [clip], error=error, budget="4 % output", progress=lines.append
    )
    assert report.static_error < report.error <= report.static_error + 4
    assert report.work < 0.8 * report.static_work
    assert report.cost == pytest.approx(report.work)
    assert report.hold_error > report.error and report.recovery is not None
    assert not report.interrupted and report.trials >= 10 and lines
    assert report.to_dict()["recovery"] == report.recovery
    # The same thresholds, in a session of their own, at the phase of the clip's first frame.
    session = ReferenceSession(fitted, state_dtype="float16")
    outputs = [(session(frame),) for frame in clip]
    residual = [n for n in range(len(clip)) if n % 4]
    trials = Trials(fitted, [read_clip(fitted.network, clip)], 4, [0], "float16")
    settings = Settings(fitted.module["main"], "float16", False)
    trial = trials.run(
        Thresholds(
            {name: c.threshold for name, c in settings.choices.items()},
            {name: g.threshold for name, g in settings.gates.items()},
        )
    )
    for n in residual:
        np.testing.assert_array_equal(trial.outputs[0][n][0], outputs[n][0])
    assert error(outputs, residual) == pytest.approx(report.error, rel=0.3)


def test_a_larger_budget_saves_more(qnet: QuantizedNetwork, clip: Any, error: Any) -> None:
    works = [
        fit_thresholds(qnet, [clip], error=error, budget=budget)[1].work
        for budget in ("1 % output", "10 % output")
    ]
    assert works[1] < works[0]


def test_a_budget_of_recovery(qnet: QuantizedNetwork, clip: Any, error: Any) -> None:
    _, report = fit_thresholds(qnet, [clip], error=error, budget="80 % recovery")
    won = report.hold_error - report.static_error
    assert won > 0 and report.hold_error - report.error >= 0.8 * won
    assert report.work < 0.9 * report.static_work
    with pytest.raises(ConfigError, match="something moves"):
        fit_thresholds(qnet, [[clip[0]] * 12], error=error, budget="80 % recovery")


def test_work_budget_and_own_cost(qnet: QuantizedNetwork, clip: Any, error: Any) -> None:
    _, report = fit_thresholds(qnet, [clip], error=error, budget="50 % work")
    assert report.work <= 0.5 and report.error > report.static_error
    _, timed = fit_thresholds(
        qnet, [clip], error=error, budget="3 ms", cost=lambda shares: 6 * shares["head"]
    )
    assert timed.cost <= 3 and timed.cost == pytest.approx(6 * timed.shares["head"])
    with pytest.raises(ConfigError, match="cannot be kept"):
        fit_thresholds(qnet, [clip], error=error, budget="3 ms", cost=lambda _shares: 4.0)


def test_the_guard_takes_frames_in_which_everything_changes(qnet: QuantizedNetwork) -> None:
    clip = busy_clip(12)
    for frame in clip[5:8]:
        frame *= -1
    error = output_error(float_outputs(small_network(), clip))
    found = {}
    for guard in (True, False):
        _, report = fit_thresholds(qnet, [clip], error=error, budget="4 % output", guard=guard)
        assert report.error <= report.static_error + 4
        found[guard] = report
    # At each of two phases two or three of these frames are residual frames.
    assert 4 <= found[True].alone <= 6 and found[False].alone == 0
    assert found[True].cost < 0.8 * found[False].cost
    # What the guard leaves is dropped more freely: the quiet frames' share of the work.
    alone = found[True].alone / found[True].frames
    assert (found[True].work - alone) / (1 - alone) < 0.8 * found[False].work
    _, bounded = fit_thresholds(qnet, [clip], error=error, budget="50 % work", guard=True)
    assert bounded.alone == 0 and bounded.cost <= 0.5


def test_choices_that_move_alone_save_more(
    qnet: QuantizedNetwork, clip: Any, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = fit_thresholds(qnet, [clip], error=error, budget="12 % output")
    assert report.error <= report.static_error + 12
    monkeypatch.setattr(Search, "_refine", lambda _search: None)
    _, together = fit_thresholds(qnet, [clip], error=error, budget="12 % output")
    assert report.cost < 0.97 * together.cost


def test_other_attributes_stay(qnet: QuantizedNetwork, clip: Any, error: Any, tmp_path) -> None:
    fitted, _ = fit_thresholds(qnet, [clip], error=error, budget="5 % output")
    assert fitted.scales == qnet.scales and fitted.layers == qnet.layers
    assert fitted.dynamic is not None and qnet.dynamic is not None
    assert set(fitted.dynamic["choices"]) == set(qnet.dynamic["choices"])
    assert {c["tau"] for c in qnet.dynamic["choices"].values()} == {3e-4}
    assert len({c["tau"] for c in fitted.dynamic["choices"].values()}) > 1
    loaded = QuantizedNetwork.load(fitted.save(tmp_path / "net.qnet"))
    assert loaded.dynamic is not None
    for part in ("choices", "gates"):
        assert loaded.dynamic[part] == fitted.dynamic[part]


def test_an_interrupt_returns_the_best_so_far(
    qnet: QuantizedNetwork, clip: Any, error: Any
) -> None:
    seen = []

    def stop(line: str) -> None:
        seen.append(line)
        if line.startswith("sweep"):
            raise KeyboardInterrupt

    _, report = fit_thresholds(qnet, [clip], error=error, budget="5 % output", progress=stop)
    assert report.interrupted and report.work < report.static_work
    assert report.error <= report.static_error + 5


def test_unread_outputs_form_a_group(qnet: QuantizedNetwork) -> None:
    main = qnet.module["main"]
    assert choice_groups(main, None) == {
        "12x10 window": ["x:0,8", "act:0,8", "depth:0,8", "point:0,8"]
    }
    assert choice_groups(main, ()) == {UNREAD: ["x:0,8", "act:0,8", "depth:0,8", "point:0,8"]}


def test_what_cannot_be_fitted(qnet: QuantizedNetwork, clip: Any, error: Any) -> None:
    static = resq.calibrate(small_network(), [clip], "W8A8->W8A4", period=4, candidates=4)
    for network, clips, options, kind, words in (
        (static, [clip], {"budget": "1 %"}, ConfigError, "W8A8->W8A4.*pool"),
        (qnet, [clip], {"budget": "nonsense"}, ConfigError, "nonsense"),
        (qnet, [clip], {"budget": "1 px"}, ConfigError, "does not fit an error in % output"),
        (qnet, [clip], {"budget": "5 ms"}, ConfigError, "needs a cost"),
        (qnet, [clip], {"budget": "1 %", "period": 1}, ConfigError, "period 1"),
        (qnet, [clip[:1]], {"budget": "1 %"}, CalibrationError, "1 frame"),
        (qnet, [clip, clip], {"budget": "1 %"}, CalibrationError, "12 of 24"),
    ):
        with pytest.raises(kind, match=words) as caught:
            fit_thresholds(network, clips, error=error, **options)
        assert "\n" not in str(caught.value)


def test_attribute_is_json(qnet: QuantizedNetwork, clip: Any, error: Any) -> None:
    fitted, _ = fit_thresholds(qnet, [clip], error=error, budget="5 % output")
    text = str(fitted.module["main"].attrs["resq.dynamic"])
    assert set(json.loads(text)) >= {"choices", "gates"}
